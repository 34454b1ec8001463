"""SamplingPanel: the system prompt and the sampling of this chat. Reading and limits are `sampling_fields`'s."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Button, Input, Label, Static, TextArea

from app.client import SamplingChoice
from app.sampling_fields import FIELDS, read_all


class SamplingPanel(VerticalScroll, can_focus=False):
    """A side panel; each valid change is posted at once, an invalid one is explained and not used."""

    DEFAULT_CSS = """
    SamplingPanel {
        dock: right;
        width: 40;
        padding: 0 1;
        background: $panel;
        border-left: tall $border-blurred;
        & > .title { text-style: bold; }
        & > TextArea { height: 6; border: tall $border-blurred; }
        & > TextArea:focus { border: tall $border; }
        & > Horizontal { height: 1; }
        & > Horizontal > Label { width: 13; }
        & > Horizontal > Input { width: 1fr; }
        & > .problem { color: $text-error; height: auto; }
        & > .hint { color: $text-muted; height: auto; }
        & > Button { margin: 1 0 0 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close panel", show=False, tooltip="Back to the message")
    ]

    class Changed(Message):
        """The system prompt or the sampling is now this."""

        def __init__(self, system: str, sampling: SamplingChoice) -> None:
            super().__init__()
            self.system, self.sampling = system, sampling

    class Closed(Message):
        """The panel wants to be hidden."""

    def __init__(self, system: str, sampling: SamplingChoice) -> None:
        super().__init__(id="sampling")
        self._system, self._sampling = system, sampling

    def compose(self) -> ComposeResult:
        yield Static("System prompt", classes="title", markup=False)
        yield TextArea(self._system, id="system", tab_behavior="focus", soft_wrap=True)
        yield Static("Sampling", classes="title", markup=False)
        for field in FIELDS:
            value = getattr(self._sampling, field.name)
            with Horizontal():
                yield Label(field.label)
                yield Input(
                    "" if value is None else f"{value}",
                    id=f"field-{field.name}",
                    placeholder="model's own",
                    compact=True,
                    tooltip=field.help,
                )
        yield Static("", classes="problem", markup=False)
        yield Static("Empty fields use the model's own values.", classes="hint", markup=False)
        yield Button("Reset all", id="reset", compact=True)

    def on_mount(self) -> None:
        self.query_one("#system", TextArea).focus()

    @on(Input.Changed)
    @on(TextArea.Changed)
    def _edited(self, event: Message) -> None:
        event.stop()
        texts = {field.name: self.query_one(f"#field-{field.name}", Input).value for field in FIELDS}
        problem = self.query_one(".problem", Static)
        try:
            sampling = read_all(texts)
        except ValueError as error:
            problem.update(str(error))
            return
        problem.update("")
        system = self.query_one("#system", TextArea).text.strip()
        if (system, sampling) != (self._system, self._sampling):
            self._system, self._sampling = system, sampling
            self.post_message(self.Changed(system, sampling))

    @on(Button.Pressed, "#reset")
    def _reset(self, event: Button.Pressed) -> None:
        event.stop()
        self.query_one("#system", TextArea).text = ""
        for each in self.query(Input):
            each.value = ""

    def action_close(self) -> None:
        self.post_message(self.Closed())
