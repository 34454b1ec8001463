"""PeerTable: the machines, this one first, one row each; which one is meant is told by its id."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from app.tui.peers.words import table
from pipeline_ext.peer_view import PeersView, PeerView

_MARGIN = 2
_SCROLLBAR = 1


class PeerTable(Vertical):
    """A head over a list; its rows are written anew for each width, and whenever something has changed."""

    DEFAULT_CSS = """
    PeerTable {
        height: auto;
        margin: 1 0 0 0;
        & > .head { height: 1; color: $text-muted; text-style: bold; padding: 0 0 0 1; text-wrap: nowrap; }
        & > OptionList { height: auto; max-height: 12; border: none; padding: 0; background: transparent;
            overflow-x: hidden; scrollbar-size-vertical: 1; }
    }
    """

    class Highlighted(Message):
        """Another machine is highlighted."""

        def __init__(self, peer: PeerView) -> None:
            super().__init__()
            self.peer = peer

    def __init__(self) -> None:
        super().__init__(id="peers")
        self._view = PeersView("none")

    def compose(self) -> ComposeResult:
        yield Static("", classes="head", markup=False)
        yield OptionList(compact=True, markup=False)

    @property
    def highlighted(self) -> PeerView | None:
        place = self.query_one(OptionList).highlighted
        return None if place is None or place >= len(self._view.peers) else self._view.peers[place]

    def show(self, view: PeersView) -> None:
        """These machines; the highlight stays with the machine that it was on."""
        if view != self._view:
            before = self.highlighted
            self._view = view
            self._write(before)

    def on_resize(self) -> None:
        self._write(self.highlighted)

    def _write(self, before: PeerView | None) -> None:
        rows = self.query_one(OptionList)
        head, lines = table(self._view, self.size.width - _MARGIN - _SCROLLBAR)
        self.query_one(".head", Static).update(head)
        ids = [peer.id for peer in self._view.peers]
        with self.prevent(OptionList.OptionHighlighted):
            rows.clear_options()
            rows.add_options(Option(Content.assemble(" ", line)) for line in lines)
            if ids:
                rows.highlighted = (
                    ids.index(before.id) if before is not None and before.id in ids else min(1, len(ids) - 1)
                )
        if (peer := self.highlighted) is not None:
            self.post_message(self.Highlighted(peer))

    @on(OptionList.OptionHighlighted)
    def _highlight(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if (peer := self.highlighted) is not None:
            self.post_message(self.Highlighted(peer))
