"""QuestionScreen: one question over the screen, answered by a button or, where wanted, a line of text."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static


class QuestionScreen(ModalScreen[str | None]):
    """Dismissed with the id of the button pressed (or the text, where `text` is given); None when cancelled."""

    DEFAULT_CSS = """
    QuestionScreen {
        align: center middle;
        background: $background 60%;
        & > Vertical {
            width: 64;
            max-width: 95%;
            height: auto;
            padding: 1 2;
            border: round $border;
            background: $surface;
        }
        Static { margin: 0 0 1 0; }
        Input { margin: 0 0 1 0; }
        Horizontal { height: auto; }
        Button { margin: 0 2 0 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", tooltip="Change nothing"),
        Binding("left", "app.focus_previous", "Previous", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, question: str, answers: dict[str, str], text: str | None = None) -> None:
        super().__init__()
        self._question, self._answers, self._text = question, answers, text

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._question, markup=False)
            if self._text is not None:
                yield Input(self._text, compact=True)
            with Horizontal():
                for name, label in self._answers.items():
                    yield Button(label, id=name, compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "cancel":
            self.dismiss(None)
        else:
            self.dismiss(event.button.id if self._text is None else self.query_one(Input).value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value)

    def action_cancel(self) -> None:
        self.dismiss(None)
