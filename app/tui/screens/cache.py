"""CacheScreen: where the server's cached pages lie: the device's as a map, host and disk as bars, and what moved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Static

from app.cache_view import CacheView
from app.tui.cache_words import summary
from app.tui.widgets.page_map import PageMap
from backend.errors import ShardwiseError

LOOK_SECONDS = 0.5


class CacheScreen(Screen[None]):
    """Looks twice a second while it is shown. `look` asks the server."""

    DEFAULT_CSS = """
    CacheScreen {
        & > #cache-figures { height: auto; padding: 1 1 1 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+t", "app.pop_screen", "Back", id="cache.back", tooltip="Back to where you were"),
    ]
    HELP = """
# Cache

Pages keep what was computed for the beginnings of chats, so that it is not computed again.
A used page belongs to an answer that is running, a shared one to several; a cached one waits for a chat that goes on.
Pages that leave the device go to host memory and to disk, where `serve --host-cache` and `--disk-cache` give them room.
"""

    def __init__(self, look: Callable[[], Awaitable[CacheView]]) -> None:
        super().__init__()
        self._look_at = look

    def compose(self) -> ComposeResult:
        yield Static("", id="cache-figures", markup=False)
        yield PageMap()
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._look()
        self.set_interval(LOOK_SECONDS, self._look)

    @work(exclusive=True, group="look")
    async def _look(self) -> None:
        figures = self.query_one("#cache-figures", Static)
        try:
            view = await self._look_at()
        except ShardwiseError as error:
            figures.update(str(error))
            return
        figures.update(summary(view.statistics))
        self.query_one(PageMap).show(view)
