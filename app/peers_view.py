"""The machines that a server stands on, as clients read them from `/peers`; checked and cleaned."""

from __future__ import annotations

import msgspec

from app.text_safety import cleaned
from pipeline_ext.peer_view import PeersView

MOST_PEERS = 1000


def read_peers(content: bytes) -> PeersView:
    """Raises ValueError for anything but the body of `/peers`."""
    try:
        view = msgspec.convert(cleaned(msgspec.json.decode(content)), type=PeersView)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if len(view.peers) > MOST_PEERS:
        raise ValueError(f"{len(view.peers)} machines")
    return view
