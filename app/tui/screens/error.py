"""ErrorScreen: what went wrong, why, and what to do, with the actions that are left."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Button, Footer, Static

from app.text_safety import clean
from backend.errors import ShardwiseError


class ErrorScreen(Screen[None]):
    """Shows one ShardwiseError; asks the app to retry, choose another model, show the log, or quit."""

    DEFAULT_CSS = """
    ErrorScreen {
        align: center middle;
        & > VerticalScroll {
            width: 90%;
            max-width: 100;
            height: auto;
            max-height: 90%;
            padding: 1 2;
            border: round $error;
            background: $surface;
        }
        .what { text-style: bold; color: $text-error; margin: 0 0 1 0; }
        .why { margin: 0 0 1 0; }
        .hint { color: $text-accent; margin: 0 0 1 0; }
        Horizontal { height: auto; }
        Button { margin: 0 2 0 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "ask('retry')", "Retry", id="error.retry", tooltip="Try the same again"),
        Binding("m", "ask('choose')", "Other model", id="error.choose", tooltip="Choose another model"),
        Binding("q", "ask('quit')", "Quit", id="error.quit", tooltip="Leave shardwise"),
        Binding("left", "app.focus_previous", "Previous", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
    ]
    HELP = """
# Something went wrong

The first line says what, the next ones why, the last one what to do about it.
`r` tries again, `m` goes to the list of models, `F9` shows the server's log, `q` quits.
"""

    class Asked(Message):
        """The user chose a way on: retry, choose or quit."""

        def __init__(self, action: str) -> None:
            super().__init__()
            self.action = action

    def __init__(self, error: ShardwiseError, can_choose: bool = True) -> None:
        super().__init__()
        self.error = error
        self._can_choose = can_choose

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield Static(clean(self.error.what), classes="what", markup=False)
            if self.error.why:
                yield Static(clean(self.error.why), classes="why", markup=False)
            if self.error.hint:
                yield Static(clean(self.error.hint), classes="hint", markup=False)
            with Horizontal():
                yield Button("Retry", id="retry", variant="primary", compact=True)
                if self._can_choose:
                    yield Button("Other model", id="choose", compact=True)
                yield Button("Quit", id="quit", compact=True)
        yield Footer(compact=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._can_choose or parameters != ("choose",)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_ask(event.button.id or "quit")

    def action_ask(self, what: str) -> None:
        self.post_message(self.Asked(what))
