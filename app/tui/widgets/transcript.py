"""Transcript: the messages of the chat on the screen, newest at the bottom. Old ones are mounted when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Button, Static

from app.tui.conversation import Entry
from app.tui.widgets.message_view import MessageView

WINDOW = 30
WELCOME = "Write a message below and press enter. F1 shows all keys, ctrl+p all commands."


class Transcript(VerticalScroll):
    """Holds one MessageView per shown entry; follows the end until the user scrolls up."""

    DEFAULT_CSS = """
    Transcript {
        layout: stream;
        height: 1fr;
        padding: 1 1 0 1;
        background: $background;
        scrollbar-size-vertical: 1;
        & > .welcome { color: $text-muted; padding: 1 2; }
        & > Button { margin: 0 0 1 0; }
        &:focus { background-tint: $foreground 3%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("end", "follow", "Follow the end", show=False, tooltip="Scroll to the newest text")
    ]

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._entries: Sequence[Entry] = ()
        self._first_shown = 0

    def on_mount(self) -> None:
        self.anchor()

    async def show(self, entries: Sequence[Entry]) -> None:
        """Replaces what is shown by these entries, the last ones mounted."""
        self._entries = entries
        self._first_shown = max(0, len(entries) - WINDOW)
        with self.app.batch_update():
            await self.remove_children()
            if not entries:
                await self.mount(Static(WELCOME, classes="welcome", markup=False))
            else:
                if self._first_shown:
                    await self.mount(Button("Show earlier messages", id="earlier", compact=True))
                await self.mount_all(MessageView(entry) for entry in entries[self._first_shown :])
        self.anchor()

    async def append(self, entry: Entry) -> MessageView:
        """Adds the view of one more entry and follows it."""
        await self.query(".welcome").remove()
        view = MessageView(entry)
        await self.mount(view)
        self.anchor()
        return view

    async def on_button_pressed(self, event: Button.Pressed) -> None:
        """Mounts the messages before the first one shown, and stays at the place that was read."""
        event.stop()
        start = max(0, self._first_shown - WINDOW)
        older = [MessageView(entry) for entry in self._entries[start : self._first_shown]]
        self._first_shown = start
        self.anchor(False)
        await self.mount_all(older, after=event.button)
        if not start:
            await event.button.remove()
        if older:
            self.scroll_to_widget(older[-1], animate=False)

    def action_follow(self) -> None:
        self.anchor()
