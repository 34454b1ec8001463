"""Drawn: a widget whose lines depend on its width, and whose height on its lines. What it draws is its subclass's."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget


class Drawn(Widget):
    """Asked for lines whenever a width is known, so that nothing is drawn for a width that is over."""

    DEFAULT_CSS = """
    Drawn { height: auto; width: 1fr; text-wrap: nowrap; }
    """

    def lines(self, width: int) -> list[Content]:
        """What to show in `width` cells."""
        raise NotImplementedError

    def redraw(self) -> None:
        """What is shown has changed."""
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.lines(width))

    def render(self) -> Content:
        return Content("\n").join(self.lines(self.content_size.width))
