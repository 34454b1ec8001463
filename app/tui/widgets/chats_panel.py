"""ChatsPanel: all chats with search in a side panel. Reading and changing the database is the screen's work."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from app.history import Chat
from app.text_safety import clean_line


class ChatList(OptionList):
    """The chats found; enter opens one, letters act on the highlighted one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "ask('rename')", "Rename", id="chats.rename", tooltip="Give the chat another title"),
        Binding("d,delete", "ask('delete')", "Delete", id="chats.delete", tooltip="Delete the chat for good"),
        Binding("x", "ask('export')", "Export", id="chats.export", tooltip="Write the chat to a Markdown file"),
    ]

    def action_ask(self, what: Literal["rename", "delete", "export"]) -> None:
        if self.highlighted is not None:
            option = self.get_option_at_index(self.highlighted)
            if option.id is not None:
                self.post_message(ChatsPanel.Asked(what, int(option.id)))


class ChatsPanel(Vertical):
    """A side panel: a search field over the list, newest chat first."""

    DEFAULT_CSS = """
    ChatsPanel {
        dock: left;
        width: 36;
        padding: 0 1;
        background: $panel;
        border-right: tall $border-blurred;
        & > Input { margin: 0 0 1 0; }
        & > ChatList { height: 1fr; border: none; background: transparent; padding: 0; }
        & > .hint { height: auto; color: $text-muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close panel", show=False, tooltip="Back to the message"),
        Binding("down", "to_list", "To the list", show=False),
    ]

    class Searched(Message):
        """The words to search for are now these; empty shows all."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    class Asked(Message):
        """The user wants something done with a chat."""

        def __init__(self, what: Literal["open", "rename", "delete", "export"], chat: int) -> None:
            super().__init__()
            self.what, self.chat = what, chat

    class Closed(Message):
        """The panel wants to be hidden."""

    def __init__(self) -> None:
        super().__init__(id="chats")

    def compose(self) -> ComposeResult:
        yield Input(placeholder="Search all chats", id="search", compact=True)
        yield ChatList(id="chat-list", compact=True)
        yield Static("enter opens · r renames · d deletes · x exports", classes="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        self.post_message(self.Searched(""))

    @property
    def words(self) -> str:
        return self.query_one(Input).value

    def show(self, chats: Sequence[Chat], current: int | None) -> None:
        """Lists these chats; the one on the screen is marked."""
        chat_list = self.query_one(ChatList)
        chat_list.clear_options()
        chat_list.add_options(
            Option(
                Content.assemble(
                    ("● " if chat.id == current else "  "),
                    clean_line(chat.title, 60) or "untitled",
                    (f"\n  {datetime.fromtimestamp(chat.updated):%d %b %H:%M}", "dim"),
                ),
                id=str(chat.id),
            )
            for chat in chats
        )
        if chats:
            chat_list.highlighted = 0

    @on(Input.Changed)
    def _search(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Searched(event.value))

    @on(Input.Submitted)
    def _first(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_to_list()

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id is not None:
            self.post_message(self.Asked("open", int(event.option.id)))

    def action_to_list(self) -> None:
        self.query_one(ChatList).focus()

    def action_close(self) -> None:
        self.post_message(self.Closed())
