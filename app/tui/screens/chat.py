"""ChatScreen: the conversation with one served model. What is said is the Conversation's, how it looks the widgets'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Markdown

from app.cache_view import CacheView
from app.client import AnswerClock, AnswerStatistics, Delta, ModelInfo, SamplingChoice, ShardwiseClient
from app.history import Chat, ChatHistory, HistoryError
from app.history_export import write_export
from app.plan_view import EnginePlan
from app.tui import cache_words
from app.tui.conversation import Conversation, Entry, HistoryStore
from app.tui.dependencies import Dependencies
from app.tui.plan_asked import PlanAsked
from app.tui.screens.cache import CacheScreen
from app.tui.screens.memory import MemoryScreen
from app.tui.screens.question import QuestionScreen
from app.tui.widgets.banner import Banner
from app.tui.widgets.chats_panel import ChatsPanel
from app.tui.widgets.message_view import NOTES, MessageView
from app.tui.widgets.prompt_input import PromptInput
from app.tui.widgets.sampling_panel import SamplingPanel
from app.tui.widgets.status_line import StatusLine
from app.tui.widgets.transcript import Transcript
from backend.errors import ShardwiseError

DRAW_SECONDS = 0.125
SAVE_SECONDS = 2.0
WIDE = 120


class ChatScreen(Screen[None]):
    """Composes the chat; one answer streams at a time."""

    DEFAULT_CSS = """
    ChatScreen {
        #body { height: 1fr; }
        #main { width: 1fr; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the answer; what has come stays"),
        Binding("f2", "toggle_chats", "Chats", id="chat.chats", tooltip="All chats, with search"),
        Binding("f3", "toggle_sampling", "Settings", id="chat.sampling", tooltip="System prompt and sampling"),
        Binding("f4", "edit_last", "Edit", id="chat.edit", tooltip="Take the last message back to edit it"),
        Binding("f5", "regenerate", "Again", id="chat.regenerate", tooltip="Another answer to the same message"),
        Binding("ctrl+t", "show_cache", "Cache", id="chat.cache", tooltip="Where cached pages lie", show=False),
        # The field for messages has a use of its own for F6 and F7.
        Binding(
            "f6",
            "plan",
            "What fits",
            id="chat.plan",
            tooltip="Plan models, machines and settings",
            show=False,
            priority=True,
        ),
        Binding(
            "f7",
            "show_memory",
            "Memory",
            id="chat.memory",
            tooltip="Predicted and measured memory",
            show=False,
            priority=True,
        ),
        Binding("f8", "copy_answer", "Copy", id="chat.copy", tooltip="Copy the last answer (through the terminal)"),
        Binding("ctrl+n", "new_chat", "New", id="chat.new", tooltip="Start a new chat"),
    ]
    AUTO_FOCUS = "#prompt"
    HELP = """
# Chat

`enter` sends, `ctrl+j` (or `shift+enter`, where the terminal can tell) starts a new line, `escape` stops an answer.
`page up` and `page down` scroll; `end` in the text above follows the newest line again.
Copying goes through the terminal (OSC 52); inside tmux it needs `set -g set-clipboard on`.
`ctrl+p` has every command, among them export, themes and stopping the server.
"""

    class SamplingChanged(Message):
        """The user chose another system prompt or sampling, to be remembered."""

        def __init__(self, system: str, sampling: SamplingChoice) -> None:
            super().__init__()
            self.system, self.sampling = system, sampling

    def __init__(
        self, client: ShardwiseClient, model: ModelInfo, store: HistoryStore, dependencies: Dependencies
    ) -> None:
        super().__init__()
        self.client = client
        self.model = model
        self._store = store
        self._dependencies = dependencies
        self._defaults: tuple[str, SamplingChoice] = ("", SamplingChoice())
        self._answering: MessageView | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._clock = AnswerClock()
        self._saved_at = 0.0
        self.conversation = Conversation(store, model.id)

    def begin_with(self, system: str, sampling: SamplingChoice) -> None:
        """What new chats start with; called before the screen is shown."""
        self._defaults = (system, sampling)
        self.conversation = Conversation(self._store, self.model.id, system, sampling)

    def compose(self) -> ComposeResult:
        yield Banner()
        with Horizontal(id="body"), Vertical(id="main"):
            yield Transcript()
            yield PromptInput()
        yield StatusLine()
        yield Footer(compact=True, show_command_palette=False)

    async def on_mount(self) -> None:
        status = self.query_one(StatusLine)
        status.model, status.context = self.model.id, self.model.context
        self.set_interval(DRAW_SECONDS, self._draw)
        await self._show_conversation()

    async def on_unmount(self) -> None:
        await self.client.aclose()

    @property
    def answering(self) -> bool:
        return self._answering is not None

    @on(PromptInput.Sent)
    async def _send(self, event: PromptInput.Sent) -> None:
        event.stop()
        if self.answering:
            self.notify("The answer is still coming; escape stops it.", markup=False)
            return
        self.query_one(PromptInput).text = ""
        entry = self.conversation.add("user", event.text)
        await self.query_one(Transcript).append(entry)
        self._answer()

    @work(exclusive=True, group="answer")
    async def _answer(self) -> None:
        conversation = self.conversation
        question = conversation.messages
        entry = conversation.add("assistant", "", "streaming")
        view = await self.query_one(Transcript).append(entry)
        self._begin_answer(view)
        note = ""
        try:
            await self._save()
            async for item in self.client.chat(self.model.id, question, conversation.sampling):
                if isinstance(item, Delta):
                    self._clock.piece()
                    view.feed(item.text, item.reasoning)
                    continue
                entry.state, entry.statistics = "complete", item.statistics
                note = "cut at the most tokens" if item.reason == "length" else ""
        except asyncio.CancelledError:
            entry.state, note = "stopped", NOTES["stopped"]
            entry.statistics = self._clock.statistics()
        except ShardwiseError as error:
            entry.state, note = "interrupted", f"{NOTES['interrupted']}: {error}"
            entry.statistics = self._clock.statistics()
        await self._end_answer(view, note)

    def _begin_answer(self, view: MessageView) -> None:
        self._answering = view
        self._idle.clear()
        self._clock = AnswerClock()
        self._saved_at = monotonic()
        self.query_one(StatusLine).activity = "thinking…"
        self.refresh_bindings()

    async def _end_answer(self, view: MessageView, note: str) -> None:
        view.entry.content = view.answer
        try:
            if self.is_mounted:
                await view.finish(note)
                self._show_figures(view.entry)
                self.query_one(StatusLine).activity = ""
            await self._save()
        finally:
            self._answering = None
            self._idle.set()
        self.refresh_bindings()

    async def _draw(self) -> None:
        """Draws what has come since the last time, 8 times a second, and keeps it every 2 s."""
        view = self._answering
        if view is None:
            return
        await view.flush()
        if view.finished:
            return
        figures = self._clock.statistics()
        if figures.time_to_first_token is not None:
            status = self.query_one(StatusLine)
            status.activity = "answering…"
            known = status.statistics
            status.statistics = replace(
                figures, prompt_tokens=known.prompt_tokens, completion_tokens=known.completion_tokens
            )
        if monotonic() - self._saved_at > SAVE_SECONDS:
            self._saved_at = monotonic()
            view.entry.content = view.answer
            await self._save()

    def _show_figures(self, entry: Entry | None) -> None:
        self.query_one(StatusLine).statistics = entry.statistics if entry else AnswerStatistics()

    async def finish_answer(self) -> None:
        """Stops a running answer and returns when it is kept; called before the screen goes."""
        running = [worker for worker in self.workers if worker.group == "answer" and not worker.is_finished]
        for worker in running:
            worker.cancel()
        await self._idle.wait()

    async def _save(self) -> None:
        status = self.query_one(StatusLine)
        try:
            await self.conversation.save()
            status.unsaved = self._store.problem is not None
        except HistoryError as error:
            if not status.unsaved:
                self.notify(str(error), title="Chat history", severity="warning", timeout=15, markup=False)
            status.unsaved = True

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.answering
        if action in ("edit_last", "regenerate", "copy_answer"):
            return bool(self.conversation.entries) and not self.answering
        return True

    def action_stop(self) -> None:
        self.workers.cancel_group(self, "answer")

    async def action_regenerate(self) -> None:
        if self.conversation.drop_last_answer():
            await self._show_conversation()
            self._answer()

    async def action_edit_last(self) -> None:
        text = self.conversation.take_last_question()
        if text is not None:
            await self._show_conversation()
            prompt = self.query_one(PromptInput)
            prompt.text = text
            prompt.move_cursor(prompt.document.end)
            prompt.focus()
            await self._save()

    def action_copy_answer(self) -> None:
        answer = self.conversation.last_answer
        if answer is not None:
            self.app.copy_to_clipboard(answer.content)
            self.notify("The answer is in the clipboard (tmux: set -g set-clipboard on)", markup=False)

    async def action_new_chat(self) -> None:
        await self.finish_answer()
        self.conversation = Conversation(self._store, self.model.id, *self._defaults)
        await self._show_conversation()

    def action_scroll_transcript(self, direction: int) -> None:
        transcript = self.query_one(Transcript)
        if direction < 0:
            transcript.scroll_page_up(animate=False)
        else:
            transcript.scroll_page_down(animate=False)

    async def _show_conversation(self) -> None:
        await self.query_one(Transcript).show(self.conversation.entries)
        self._show_figures(self.conversation.last_answer)
        self.query_one(PromptInput).focus()
        self.refresh_bindings()

    @on(Markdown.LinkClicked)
    def _link(self, event: Markdown.LinkClicked) -> None:
        """A model's link is never opened by itself: it may lead anywhere."""
        event.stop()
        self.app.copy_to_clipboard(event.href)
        self.notify(f"Copied the link: {event.href}", markup=False)

    async def action_toggle_chats(self) -> None:
        await self._toggle(ChatsPanel, ChatsPanel)

    async def action_toggle_sampling(self) -> None:
        conversation = self.conversation
        await self._toggle(SamplingPanel, lambda: SamplingPanel(conversation.system, conversation.sampling))

    async def _toggle(
        self, kind: type[ChatsPanel | SamplingPanel], make: Callable[[], ChatsPanel | SamplingPanel]
    ) -> None:
        """Opens or closes a panel; a narrow terminal has room for one at a time."""
        opened = self.query(kind)
        if opened:
            await opened.remove()
            self.query_one(PromptInput).focus()
            return
        if self.size.width < WIDE:
            await self.query("ChatsPanel, SamplingPanel").remove()
        await self.query_one("#body").mount(make())

    @on(ChatsPanel.Closed)
    @on(SamplingPanel.Closed)
    async def _close_panel(self, event: Message) -> None:
        await (self.action_toggle_chats() if isinstance(event, ChatsPanel.Closed) else self.action_toggle_sampling())

    @on(SamplingPanel.Changed)
    def _sampling_changed(self, event: SamplingPanel.Changed) -> None:
        self.conversation.system, self.conversation.sampling = event.system, event.sampling
        self._defaults = (event.system, event.sampling)
        self.post_message(self.SamplingChanged(event.system, event.sampling))

    @on(ChatsPanel.Searched)
    def _searched(self, event: ChatsPanel.Searched) -> None:
        self._search(event.words)

    @work(exclusive=True, group="search")
    async def _search(self, words: str) -> None:
        try:
            chats = await self._store.run(ChatHistory.chats, words)
        except HistoryError as error:
            self.notify(str(error), severity="warning", markup=False)
            return
        for panel in self.query(ChatsPanel):
            panel.show(chats, self.conversation.chat_id)

    @on(ChatsPanel.Asked)
    def _asked(self, event: ChatsPanel.Asked) -> None:
        self._manage(event.what, event.chat)

    @work(exclusive=True, group="manage")
    async def _manage(self, what: str, number: int) -> None:
        """Opens, renames, deletes or exports a chat of the list."""
        try:
            chat = await self._store.run(ChatHistory.chat, number)
            if chat is None:
                return
            if what == "open":
                await self._open(chat)
            elif what == "export":
                await self._export(chat, "markdown")
            elif what == "rename":
                await self._rename(chat)
            elif what == "delete":
                await self._delete(chat)
        except HistoryError as error:
            self.notify(str(error), severity="warning", markup=False)

    async def _open(self, chat: Chat) -> None:
        await self.finish_answer()
        loaded = await Conversation.load(self._store, chat)
        # An old chat goes on with the model that is served now.
        loaded.model = self.model.id
        self.conversation = loaded
        if self.size.width < WIDE:
            await self.query(ChatsPanel).remove()
        await self._show_conversation()
        self._refresh_panel()

    async def _rename(self, chat: Chat) -> None:
        title = await self.app.push_screen_wait(QuestionScreen("New title:", {"ok": "Rename"}, chat.title))
        if title and title.strip():
            await self._store.run(ChatHistory.rename, chat.id, title)
            self._refresh_panel()

    async def _delete(self, chat: Chat) -> None:
        question = f"Delete “{chat.title}” for good?"
        if await self.app.push_screen_wait(QuestionScreen(question, {"delete": "Delete"})) != "delete":
            return
        current = chat.id == self.conversation.chat_id
        if current:
            await self.action_new_chat()
        await self._store.run(ChatHistory.delete, chat.id)
        self._refresh_panel()

    def _refresh_panel(self) -> None:
        for panel in self.query(ChatsPanel):
            self._search(panel.words)

    @work(exclusive=True, group="manage")
    async def export_current(self, kind: str) -> None:
        """Writes the chat on the screen to a file; for the command palette."""
        number = self.conversation.chat_id
        chat = None if number is None else await self._store.run(ChatHistory.chat, number)
        if chat is None:
            self.notify("There is nothing to export yet.", markup=False)
            return
        try:
            await self._export(chat, kind)
        except HistoryError as error:
            self.notify(str(error), severity="warning", markup=False)

    async def _export(self, chat: Chat, kind: str) -> None:
        turns = await self._store.run(ChatHistory.turns, chat.id)
        path = await asyncio.to_thread(write_export, chat, turns, self._dependencies.exports, kind)
        self.notify(f"Written to {path}", title="Export", timeout=10, markup=False)

    def action_plan(self) -> None:
        self.post_message(PlanAsked(self.model.id))

    def action_show_memory(self) -> None:
        self.app.push_screen(MemoryScreen(self._look_at_plans))

    async def _look_at_plans(self) -> tuple[EnginePlan, ...]:
        """Asks whichever server the chat is with now."""
        return await self.client.plan()

    def action_show_cache(self) -> None:
        self.app.push_screen(CacheScreen(self._look_at_cache))

    async def _look_at_cache(self) -> CacheView:
        """Asks whichever server the chat is with now."""
        return await self.client.cache()

    def show_cache(self, view: CacheView | None) -> None:
        """The cache's figures in the status line; None where the server does not tell."""
        for line in self.query(StatusLine):
            line.cache = cache_words.status(view.statistics) if view else ""

    def show_server(self, problem: str, fallback: str = "") -> None:
        """Says what the server's state means for the user; an empty text when all is well again.

        `fallback`: the model that answers in place of the one that was chosen.
        """
        for line in self.query(StatusLine):
            line.fallback = fallback
        # The screen may be on its way out while its server is being watched.
        for banner in self.query(Banner):
            banner.say(problem)

    def use(self, client: ShardwiseClient, model: ModelInfo) -> None:
        """Goes on with another connection, the conversation as it is."""
        self.client, self.model = client, model
        self.conversation.model = model.id
        self._show_model()

    def _show_model(self) -> None:
        for status in self.query(StatusLine):
            status.model, status.context = self.model.id, self.model.context
