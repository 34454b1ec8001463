"""Choice: one of a few named values that have no order, side by side in a single line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from app.tui.widgets.slider import LABEL_CELLS


class Choice(Widget, can_focus=True):
    """A label and the values; the chosen one stands in brackets, so that no colour is needed to see it."""

    DEFAULT_CSS = """
    Choice {
        height: 1;
        width: 1fr;
        &:focus { background: $panel; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Previous", show=False, tooltip="The value to the left"),
        Binding("right", "move(1)", "Next", show=False, tooltip="The value to the right"),
        Binding("home", "edge(0)", "First", show=False, tooltip="The first value"),
        Binding("end", "edge(-1)", "Last", show=False, tooltip="The last value"),
        Binding("up", "app.focus_previous", "Previous", show=False),
        Binding("down,enter", "app.focus_next", "Next", show=False),
    ]

    class Changed(Message):
        """Another value is chosen now, by the user's hand."""

        def __init__(self, choice: Choice, value: str) -> None:
            super().__init__()
            self.choice, self.value = choice, value

        @property
        def control(self) -> Choice:
            return self.choice

    def __init__(self, label: str, values: Sequence[str], value: str, *, id: str, tooltip: str = "") -> None:
        super().__init__(id=id)
        self.label = label
        self.values = tuple(values)
        self.value = value
        self.tooltip = tooltip or None

    def set(self, value: str) -> None:
        """Another value without a message; one that is not among the values joins them."""
        if value not in self.values:
            self.values = (*self.values, value)
        self.value = value
        self.refresh()

    def render(self) -> Content:
        chosen = "bold $accent" if self.has_focus else "bold $primary"
        cells = [
            (f"[{value}]", chosen) if value == self.value else (f" {value} ", "$text-muted") for value in self.values
        ]
        return Content.assemble(
            ("▸ " if self.has_focus else "  ", "$accent"),
            (f"{self.label:<{LABEL_CELLS - 1}}", "bold" if self.has_focus else ""),
            *cells,
        )

    def action_move(self, steps: int) -> None:
        self._go(self.values.index(self.value) + steps)

    def action_edge(self, index: int) -> None:
        self._go(index % len(self.values))

    def on_click(self, event: events.Click) -> None:
        start = LABEL_CELLS + 1
        for index, value in enumerate(self.values):
            if start <= event.x < start + len(value) + 2:
                self._go(index)
            start += len(value) + 2

    def _go(self, index: int) -> None:
        value = self.values[max(0, min(index, len(self.values) - 1))]
        if value != self.value:
            self.value = value
            self.refresh()
            self.post_message(self.Changed(self, value))
