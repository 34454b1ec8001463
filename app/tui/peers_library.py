"""What the screen of the machines asks of this one: its hub, as the command line's `peers` asks it."""

from __future__ import annotations

from app.tui.dependencies import PeerInvite, PeersOutside
from pipeline_ext.extra import INSTALL, missing_modules
from pipeline_ext.peer_view import PeersView

_INVITE_SECONDS = 3600.0


def outside() -> PeersOutside:
    """Nothing of the extra `peers` is imported before it is asked for."""
    return PeersOutside(view=_view, invite=_invite, remove=_remove, obstacle=_obstacle)


def _view() -> PeersView:
    from app.peer_news import asked_of_servers

    return asked_of_servers()


def _invite() -> PeerInvite:
    from pipeline_ext.hub_control import HubClient, Invited, MakeInvite
    from pipeline_ext.hub_start import ensure_hub

    ensure_hub()
    answer = HubClient().ask(MakeInvite(_INVITE_SECONDS, 1))
    if not isinstance(answer, Invited):
        raise TypeError(type(answer).__name__)
    words = (
        "It can be used once, within 1 h. Whoever has it can join, and from then on run programs as you on this "
        f"machine and on every peer: give it only to who may. `shardwise peers revoke {answer.name}` takes it back."
    )
    if answer.wildcard_ports:
        words += (
            "\nRay listens on every address of this machine, and answers only to the cluster's token; `shardwise peers "
            "list` prints a firewall rule that shuts its ports off from other networks."
        )
    return PeerInvite(f"shardwise peers join {answer.line}", words)


def _remove(peer: str, at_once: bool) -> None:
    from pipeline_ext.hub_control import HubClient, RemovePeer

    HubClient().ask(RemovePeer(peer, at_once))


def _obstacle() -> str:
    if not (missing := missing_modules()):
        return ""
    return (
        f"Other machines can be added when {' and '.join(missing)} can be imported here, and there. On each one:\n"
        f"{INSTALL}"
    )
