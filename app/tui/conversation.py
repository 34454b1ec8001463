"""Conversation: the chat on the screen, kept in memory and copied to the history. Showing it is the widgets' work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from app.client import AnswerStatistics, ChatMessage, Role, SamplingChoice
from app.history import Chat, ChatHistory, HistoryError, Turn, TurnState
from app.text_safety import clean_line

TITLE_CHARACTERS = 60
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class HistoryStore:
    """The chat database on a thread of its own, so that a slow disk never stops the screen.

    Where the database cannot be opened, chats live in memory and `problem` says why.
    """

    def __init__(self, path: Path | None) -> None:
        self._thread = ThreadPoolExecutor(1, "history")
        self.problem: HistoryError | None = None
        try:
            self._history = ChatHistory(path)
        except HistoryError as error:
            self.problem = error
            self._history = ChatHistory(None)

    async def run(
        self,
        method: Callable[Concatenate[ChatHistory, Arguments], Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Calls a method of ChatHistory, such as `run(ChatHistory.rename, 3, "new")`.

        Raises:
            HistoryError: as the method does.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: method(self._history, *arguments, **named))

    def close(self) -> None:
        self._thread.shutdown()
        self._history.close()


@dataclass(slots=True)
class Entry:
    """One message as it is now; `saved` is what the database has of it."""

    role: Role
    content: str
    model: str = ""
    state: TurnState = "complete"
    statistics: AnswerStatistics = field(default_factory=AnswerStatistics)
    turn: int | None = None
    saved: tuple[str, TurnState, AnswerStatistics] | None = None


class Conversation:
    """The entries of one chat. Changes are made in memory; `save` brings the database up to date.

    A save that fails (full disk) loses nothing here, and the next one repeats what is missing.
    """

    def __init__(self, store: HistoryStore, model: str, system: str = "", sampling: SamplingChoice | None = None):
        self._store = store
        self._lock = asyncio.Lock()
        self._chat: Chat | None = None
        self._drop_from: int | None = None
        self.entries: list[Entry] = []
        self.model = model
        self.system = system
        self.sampling = sampling or SamplingChoice()

    @classmethod
    async def load(cls, store: HistoryStore, chat: Chat) -> Conversation:
        """A chat from the database; answers that our process did not finish are marked as interrupted."""
        loaded = cls(store, chat.model, chat.system, chat.sampling)
        loaded._chat = chat
        loaded.entries = [_entry(turn) for turn in await store.run(ChatHistory.turns, chat.id)]
        return loaded

    @property
    def chat_id(self) -> int | None:
        return None if self._chat is None else self._chat.id

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """What the server gets: the system prompt and all entries with text.

        Questions in a row (their answer never came) are joined: many chat templates insist on taking turns.
        """
        found = [ChatMessage("system", self.system)] if self.system else []
        for entry in self.entries:
            if not entry.content:
                continue
            if found and found[-1].role == entry.role:
                found[-1] = ChatMessage(entry.role, f"{found[-1].content}\n\n{entry.content}")
            else:
                found.append(ChatMessage(entry.role, entry.content))
        return tuple(found)

    @property
    def last_answer(self) -> Entry | None:
        return next((each for each in reversed(self.entries) if each.role == "assistant"), None)

    def add(self, role: Role, content: str, state: TurnState = "complete") -> Entry:
        entry = Entry(role, content, self.model if role == "assistant" else "", state)
        self.entries.append(entry)
        return entry

    def drop_from(self, index: int) -> None:
        """Removes the entry at `index` and all after it."""
        dropped = self.entries[index:]
        del self.entries[index:]
        turns = [each.turn for each in dropped if each.turn is not None]
        if turns:
            self._drop_from = min(turns) if self._drop_from is None else min(self._drop_from, *turns)

    def drop_last_answer(self) -> bool:
        """Removes the answer at the end, for another; False where the chat has no question at its end."""
        if self.entries and self.entries[-1].role == "assistant":
            self.drop_from(len(self.entries) - 1)
        return bool(self.entries) and self.entries[-1].role == "user"

    def take_last_question(self) -> str | None:
        """Removes the last question and what follows, and returns its text to be edited; None where there is none."""
        for index in range(len(self.entries) - 1, -1, -1):
            if self.entries[index].role == "user":
                text = self.entries[index].content
                self.drop_from(index)
                return text
        return None

    async def save(self) -> None:
        """Makes the database hold what is here now.

        Raises:
            HistoryError: it cannot be written; nothing is lost here.
        """
        async with self._lock:
            await self._store.run(self._write)

    def _write(self, history: ChatHistory) -> None:
        """Runs on the store's thread, one at a time."""
        entries = list(self.entries)
        if self._chat is None:
            if not entries:
                return
            title = clean_line(entries[0].content, TITLE_CHARACTERS) or "New chat"
            self._chat = history.add_chat(self.model, title, self.system, self.sampling)
        if (self._chat.model, self._chat.system, self._chat.sampling) != (self.model, self.system, self.sampling):
            history.change_chat(self._chat.id, self.model, self.system, self.sampling)
            self._chat = history.chat(self._chat.id) or self._chat
        if self._drop_from is not None:
            history.drop_turns_from(self._chat.id, self._drop_from)
            self._drop_from = None
        for entry in entries:
            now = (entry.content, entry.state, entry.statistics)
            if entry.turn is None:
                entry.turn = history.add_turn(self._chat.id, entry.role, now[0], entry.model, now[1])
                entry.saved = (now[0], now[1], AnswerStatistics())
            if entry.saved != now:
                history.change_turn(entry.turn, *now)
                entry.saved = now


def _entry(turn: Turn) -> Entry:
    state: TurnState = "interrupted" if turn.state == "streaming" else turn.state
    saved = (turn.content, turn.state, turn.statistics)
    return Entry(turn.role, turn.content, turn.model, state, turn.statistics, turn.id, saved)
