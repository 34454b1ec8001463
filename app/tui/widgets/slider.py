"""Slider: one of a few ordered values, chosen with arrow keys or the mouse, in a single line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

LABEL_CELLS = 10
VALUE_CELLS = 10
_LEAST_TRACK = 8


class Slider(Widget, can_focus=True):
    """A label, a track with a thumb, and the value in words; a marker and colours show where the focus is."""

    DEFAULT_CSS = """
    Slider {
        height: 1;
        width: 1fr;
        color: $foreground;
        &:focus { background: $panel; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Less", show=False, tooltip="The next smaller value"),
        Binding("right", "move(1)", "More", show=False, tooltip="The next larger value"),
        Binding("home", "edge(0)", "Least", show=False, tooltip="The smallest value"),
        Binding("end", "edge(-1)", "Most", show=False, tooltip="The largest value"),
        Binding("up", "app.focus_previous", "Previous", show=False),
        Binding("down,enter", "app.focus_next", "Next", show=False),
    ]

    class Changed(Message):
        """The thumb stands at another stop now, by the user's hand."""

        def __init__(self, slider: Slider, index: int) -> None:
            super().__init__()
            self.slider, self.index = slider, index

        @property
        def control(self) -> Slider:
            return self.slider

    def __init__(self, label: str, stops: Sequence[str], index: int = 0, *, id: str, tooltip: str = "") -> None:
        super().__init__(id=id)
        self.label = label
        self.stops = tuple(stops)
        self.index = index
        self.tooltip = tooltip or None

    def set(self, stops: Sequence[str], index: int) -> None:
        """Other stops, or another position, without a message."""
        self.stops, self.index = tuple(stops), max(0, min(index, len(stops) - 1))
        self.refresh()

    def render(self) -> Content:
        last, track = len(self.stops) - 1, self._track
        thumb = 0 if not last else round(self.index * (track - 1) / last)
        lit = "$accent" if self.has_focus else "$primary"
        return Content.assemble(
            ("▸ " if self.has_focus else "  ", "$accent"),
            (f"{self.label:<{LABEL_CELLS}}", "bold" if self.has_focus else ""),
            ("━" * thumb, lit),
            ("●", f"bold {lit}"),
            ("─" * (track - 1 - thumb), "$text-muted"),
            (f" {self.stops[self.index]:<{VALUE_CELLS}}", "bold"),
        )

    @property
    def _track(self) -> int:
        return max(_LEAST_TRACK, self.content_size.width - LABEL_CELLS - VALUE_CELLS - 3)

    def action_move(self, steps: int) -> None:
        self._go(self.index + steps)

    def action_edge(self, index: int) -> None:
        self._go(index % len(self.stops))

    def on_click(self, event: events.Click) -> None:
        cell = event.x - LABEL_CELLS - 2
        if 0 <= cell < self._track:
            self._go(round(cell * (len(self.stops) - 1) / (self._track - 1)))

    def _go(self, index: int) -> None:
        index = max(0, min(index, len(self.stops) - 1))
        if index != self.index:
            self.index = index
            self.refresh()
            self.post_message(self.Changed(self, index))
