"""PageMap: the device's pages as a field of cells, with a legend. Shapes tell the states apart, colours only help."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text
from textual.widgets import Static

from app.cache_view import CacheView
from kvcache.statistics import CACHED, FREE, SHARED, USED, CacheMap

# By state: glyph, name, colour of the theme.
STATES = {
    FREE: ("·", "free", "text-muted"),
    CACHED: ("░", "cached", "accent"),
    USED: ("▓", "used", "primary"),
    SHARED: ("█", "shared", "warning"),
}


class PageMap(Static):
    """Cells from the first page to the last, row by row; as many as the engine sends, or as fit."""

    DEFAULT_CSS = """
    PageMap {
        height: 1fr;
        padding: 0 1;
    }
    """

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self._view = CacheView()

    def show(self, view: CacheView) -> None:
        self._view = view
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        width, height = self.content_size
        self.update(self._legend() + Text("\n\n") + self._cells(max(1, width), max(1, height - 2)))

    def _legend(self) -> Text:
        cache = self._view.statistics
        counts = {
            FREE: cache.pages_free,
            CACHED: cache.pages_cached,
            USED: cache.pages_used - cache.pages_shared,
            SHARED: cache.pages_shared,
        }
        text = Text(no_wrap=True, overflow="ellipsis")
        for state, (glyph, name, _) in STATES.items():
            text.append(glyph * 2, self._style(state))
            text.append(f" {name} {counts[state]:,}   ")
        return text

    def _cells(self, width: int, height: int) -> Text:
        if self._view.map is None:
            return Text("The engine has not told of its pages yet.")
        cells, per_cell = merged(self._view.map, width * height)
        text = Text(no_wrap=True)
        for start in range(0, len(cells), width):
            for state in cells[start : start + width]:
                text.append(STATES[state][0], self._style(state))
            text.append("\n")
        if per_cell > 1:
            text.append(f"A cell is {per_cell:,} pages and shows the busiest.")
        return text

    def _style(self, state: int) -> Style:
        colour = self.app.theme_variables.get(STATES[state][2], "")
        # Some themes mix their colours while drawing; then the glyph has to do.
        return Style(color=colour) if colour.startswith("#") and len(colour) == len("#rrggbb") else Style()


def merged(pages: CacheMap, room: int) -> tuple[bytes, int]:
    """The map in at most `room` cells, and the pages of one; a cell shows the busiest of what it stands for."""
    run = max(1, -(-len(pages.device) // max(1, room)))
    cells = bytes(max(pages.device[start : start + run]) for start in range(0, len(pages.device), run))
    return cells, run * pages.pages_per_cell
