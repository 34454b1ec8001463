"""PeerDetails: all that is known of one machine. The words are `app.tui.peers.words`'s."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from app.tui.peers.words import details
from pipeline_ext.peer_view import PeerView


class PeerDetails(Static):
    """Empty while none is chosen."""

    DEFAULT_CSS = """
    PeerDetails { height: auto; padding: 0 1; margin: 1 0 0 0; background: $panel; }
    """

    def __init__(self) -> None:
        super().__init__("", markup=False)

    def show(self, peer: PeerView | None) -> None:
        self.display = peer is not None
        if peer is not None:
            self.update(Content("\n").join(details(peer)))
