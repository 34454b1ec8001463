"""HelpScreen: what the screen below is for, and every key that does something there."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Markdown, Static


class HelpScreen(ModalScreen[None]):
    """Made for one screen; f1, escape, q and enter close it."""

    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;
        background: $background 60%;
        & > VerticalScroll {
            width: 76;
            max-width: 95%;
            height: auto;
            max-height: 95%;
            padding: 0 1;
            border: round $border;
            background: $surface;
        }
        Markdown { background: transparent; padding: 0 1; margin: 0; }
        .keys { padding: 0 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1,escape,q,enter", "dismiss", "Close", tooltip="Close this help"),
        Binding("up", "scroll(-1)", show=False),
        Binding("down", "scroll(1)", show=False),
    ]

    def __init__(self, about: Screen) -> None:
        super().__init__()
        self._text = about.HELP or ""
        self._keys = tuple(
            (self._key_name(about, active.binding), active.tooltip or active.binding.description)
            for active in about.active_bindings.values()
            if active.binding.tooltip and active.binding.description
        )

    @staticmethod
    def _key_name(about: Screen, binding: Binding) -> str:
        return about.app.get_key_display(binding)

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Markdown(self._text, open_links=False)
            lines = [Content.assemble((f"{key:>9}", "bold"), f"  {what}") for key, what in self._keys]
            yield Static(Content("\n").join(lines), classes="keys")

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)
