"""What the screen of the machines asks of this one: its hub, as the command line's `peers` asks it."""

from __future__ import annotations

from app.tui.dependencies import PeerInvite, PeersOutside
from pipeline_ext.extra import require_extra
from pipeline_ext.peer_view import PeersView


def outside() -> PeersOutside:
    """Nothing of the extra `peers` is imported before it is asked for."""
    return PeersOutside(view=_view, invite=_invite, remove=_remove)


def _view() -> PeersView:
    require_extra()
    return PeersView("none")


def _invite() -> PeerInvite:
    require_extra()
    raise NotImplementedError


def _remove(peer: str, at_once: bool) -> None:
    require_extra()
    raise NotImplementedError
