"""StartScreen: choosing a model, from those on this machine or by name. Fetching and starting it is the app's."""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Button, Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from app.text_safety import clean_line
from app.tui import format as figures
from app.tui.daemon_thread import in_daemon_thread
from app.tui.dependencies import Dependencies, ModelChoice
from app.tui.plan_asked import PlanAsked
from backend.errors import ShardwiseError


class StartScreen(Screen[None]):
    """The first thing a newcomer sees: enter on the highlighted line is all it takes."""

    DEFAULT_CSS = """
    StartScreen {
        align: center middle;
        & > Vertical {
            width: 90%;
            max-width: 90;
            height: auto;
            max-height: 95%;
            padding: 1 2;
            border: round $border;
            background: $surface;
        }
        .title { text-style: bold; color: $text-primary; }
        .lead { color: $text-muted; margin: 0 0 1 0; }
        OptionList { height: auto; max-height: 12; border: none; padding: 0; margin: 0 0 1 0; }
        .problem { color: $text-error; height: auto; }
        Button { margin: 1 0 0 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", id="start.back", tooltip="Back to the chat"),
        Binding("f6", "plan", "What fits", id="start.plan", tooltip="Plan which model fits, how fast, for how many"),
        Binding("f5", "reload", "Look again", id="start.reload", tooltip="Read the list of models again"),
    ]
    HELP = """
# Choose a model

Arrow keys and `enter` choose from the list; `tab` goes to the field below it, which takes
`org/name` or `org/name@revision` of the Hugging Face hub, a folder, or a `.gguf` file.
What is not on this machine yet is downloaded first; `F6` plans before that: what fits, how fast, for how many.
"""

    class Chosen(Message):
        """The user wants this model."""

        def __init__(self, model: str) -> None:
            super().__init__()
            self.model = model

    def __init__(self, dependencies: Dependencies, last: str = "") -> None:
        super().__init__()
        self._dependencies = dependencies
        self._last = last

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("shardwise", classes="title", markup=False)
            yield Static("Choose a model to chat with.", classes="lead", markup=False)
            yield OptionList(id="models", compact=True)
            yield Input(placeholder="or type org/name, a folder, or a .gguf file", id="name", compact=True)
            yield Static("", classes="problem", markup=False)
            yield Button("What fits? (F6)", id="plan", compact=True, tooltip="Plan before anything is downloaded")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()
        self.action_reload()

    @work(exclusive=True, group="choices")
    async def action_reload(self) -> None:
        self.query_one(OptionList).loading = True
        problem = self.query_one(".problem", Static)
        try:
            choices = await in_daemon_thread(self._dependencies.choices)
            problem.update("")
        except ShardwiseError as error:
            choices = ()
            problem.update(str(error))
        self._show(choices)

    def _show(self, choices: tuple[ModelChoice, ...]) -> None:
        models = self.query_one(OptionList)
        models.loading = False
        models.clear_options()
        width = max([20, *(len(each.name) for each in choices)])
        models.add_options(Option(_line(each, min(width, 48)), id=each.name) for each in choices)
        if choices:
            names = [each.name for each in choices]
            models.highlighted = names.index(self._last) if self._last in names else 0
            models.focus()
        else:
            self.query_one(Input).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # The bottom of the stack is Textual's blank screen: with nothing else below there is no way back.
        return action != "back" or len(self.app.screen_stack) > 2

    def action_back(self) -> None:
        self.app.pop_screen()

    @on(OptionList.OptionSelected)
    def _choose(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Chosen(event.option.id or ""))

    def action_plan(self) -> None:
        """With the model typed, or the highlighted one."""
        models = self.query_one(OptionList)
        typed = self.query_one(Input).value.strip()
        listed = models.highlighted_option.id if models.highlighted_option is not None else None
        self.post_message(PlanAsked(typed or listed or ""))

    @on(Button.Pressed)
    def _plan(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_plan()

    @on(Input.Submitted)
    def _name(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value.strip():
            self.post_message(self.Chosen(event.value.strip()))


def _line(choice: ModelChoice, width: int) -> Content:
    bytes_text = figures.size(choice.bytes) if choice.bytes is not None else ""
    place = bytes_text if choice.installed else f"{bytes_text} to download".strip()
    return Content.assemble(
        f"{clean_line(choice.name, 48):<{width}}  ",
        (f"{place:<17}", "dim" if choice.installed else "bold"),
        (f" {clean_line(choice.note, 60)}" if choice.note else "", "dim"),
    )
