"""ChatHistory: chats kept in one SQLite file with full-text search. Writing them out is `history_export`'s.

One object is one writer: its methods may be called from any thread, one at a time. Each method that changes something
is one transaction that is on the disk when it returns (WAL with full synchronization).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from time import time
from typing import Literal

import platformdirs

from app.client import AnswerStatistics, ChatMessage, Role, SamplingChoice
from app.text_safety import clean_line
from backend.errors import ShardwiseError

TurnState = Literal["complete", "stopped", "interrupted", "streaming"]

# Each entry lifts the schema by one version; an entry never changes once released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE chats (
            id INTEGER PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, system TEXT NOT NULL DEFAULT '',
            sampling TEXT NOT NULL DEFAULT '{}', created REAL NOT NULL, updated REAL NOT NULL)""",
        """CREATE TABLE turns (
            id INTEGER PRIMARY KEY, chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
            role TEXT NOT NULL, content TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL,
            prompt_tokens INTEGER, completion_tokens INTEGER, time_to_first_token REAL, tokens_per_second
            REAL,
            created REAL NOT NULL)""",
        "CREATE INDEX turns_of_chat ON turns (chat, id)",
        "CREATE INDEX chats_by_update ON chats (updated)",
        """CREATE VIRTUAL TABLE turns_text USING fts5 (
            content, content='turns', content_rowid='id', tokenize='unicode61 remove_diacritics 2')""",
        """CREATE TRIGGER turn_added AFTER INSERT ON turns BEGIN
            INSERT INTO turns_text (rowid, content) VALUES (new.id, new.content); END""",
        """CREATE TRIGGER turn_removed AFTER DELETE ON turns BEGIN
            INSERT INTO turns_text (turns_text, rowid, content) VALUES ('delete', old.id, old.content); END""",
        """CREATE TRIGGER turn_changed AFTER UPDATE OF content ON turns BEGIN
            INSERT INTO turns_text (turns_text, rowid, content) VALUES ('delete', old.id, old.content);
            INSERT INTO turns_text (rowid, content) VALUES (new.id, new.content); END""",
    ),
)


class HistoryError(ShardwiseError):
    """The chat database cannot be opened, read or written; chatting goes on without it."""

    code = "history"


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation; times are seconds since 1970."""

    id: int
    title: str
    model: str
    system: str
    sampling: SamplingChoice
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat. `interrupted` answers broke off; `streaming` ones were cut by the end of our
    process."""

    id: int
    role: Role
    content: str
    model: str
    state: TurnState
    statistics: AnswerStatistics
    created: float

    @property
    def message(self) -> ChatMessage:
        return ChatMessage(self.role, self.content)


def default_path() -> Path:
    """Where this user's chats lie."""
    return platformdirs.user_data_path("shardwise") / "chats.sqlite3"


class ChatHistory:
    """The chat database at `path` (None: in memory, nothing is kept).

    Raises:
        HistoryError: every method, where the disk is full or read-only, the file is no database of ours, or a
        newer
            version wrote it.
    """

    def __init__(
        self,
        path: Path | None,
        migrations: tuple[tuple[str, ...], ...] = MIGRATIONS,
        busy_seconds: float = 5.0,
    ) -> None:
        self.path = path
        self._lock = RLock()
        with self._explained():
            if path is not None:
                _create_private(path)
            self._db = sqlite3.connect(
                path or ":memory:", timeout=busy_seconds, check_same_thread=False, isolation_level=None
            )
            try:
                self._prepare(migrations)
            except BaseException:
                self._db.close()
                raise

    def _prepare(self, migrations: tuple[tuple[str, ...], ...]) -> None:
        version = self._version()
        if version > len(migrations):
            raise HistoryError(
                f"The chat database {self.path} was written by a newer version of shardwise",
                f"Its schema has version {version}; this program knows versions up to {len(migrations)}.",
                "Update shardwise, or move the file away to start a new one.",
            )
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        if version < len(migrations):
            self._migrate(migrations)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self, migrations: tuple[tuple[str, ...], ...]) -> None:
        with self._transaction():
            # Read again under the write lock: another process may have migrated meanwhile.
            for number in range(self._version(), len(migrations)):
                for statement in migrations[number]:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(migrations)}")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add_chat(self, model: str, title: str, system: str = "", sampling: SamplingChoice | None = None) -> Chat:
        """A new, empty chat."""
        now = time()
        chosen = sampling or SamplingChoice()
        row = (clean_line(title), model, _storable(system), json.dumps(asdict(chosen)), now, now)
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO chats (title, model, system, sampling, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            return Chat(int(cursor.lastrowid or 0), row[0], model, row[2], chosen, now, now)

    def change_chat(self, chat: int, model: str, system: str, sampling: SamplingChoice) -> None:
        """Remembers the model, system prompt and sampling that the chat now uses."""
        with self._transaction():
            self._db.execute(
                "UPDATE chats SET model = ?, system = ?, sampling = ? WHERE id = ?",
                (model, _storable(system), json.dumps(asdict(sampling)), chat),
            )

    def rename(self, chat: int, title: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE chats SET title = ? WHERE id = ?", (clean_line(title), chat))

    def delete(self, chat: int) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM chats WHERE id = ?", (chat,))

    def add_turn(self, chat: int, role: Role, content: str, model: str = "", state: TurnState = "complete") -> int:
        """Appends a message; returns its id."""
        now = time()
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO turns (chat, role, content, model, state, created) VALUES (?, ?, ?, ?, ?, ?)",
                (chat, role, _storable(content), model, state, now),
            )
            self._db.execute("UPDATE chats SET updated = ? WHERE id = ?", (now, chat))
            return int(cursor.lastrowid or 0)

    def change_turn(
        self, turn: int, content: str, state: TurnState, statistics: AnswerStatistics | None = None
    ) -> None:
        """Replaces a message's text, state and figures (an answer that grows, or has ended)."""
        figures = statistics or AnswerStatistics()
        with self._transaction():
            self._db.execute(
                """UPDATE turns SET content = ?, state = ?, prompt_tokens = ?, completion_tokens = ?,
                time_to_first_token = ?, tokens_per_second = ? WHERE id = ?""",
                (
                    _storable(content),
                    state,
                    figures.prompt_tokens,
                    figures.completion_tokens,
                    figures.time_to_first_token,
                    figures.tokens_per_second,
                    turn,
                ),
            )

    def drop_turns_from(self, chat: int, turn: int) -> None:
        """Removes this message and all after it (regenerate, edit)."""
        with self._transaction():
            self._db.execute("DELETE FROM turns WHERE chat = ? AND id >= ?", (chat, turn))

    def chats(self, search: str = "", limit: int = 200) -> tuple[Chat, ...]:
        """Chats, newest first; with `search`, those with all its words in the title or in one message."""
        words = search.split()
        with self._explained(), self._lock:
            if not words:
                rows = self._db.execute("SELECT * FROM chats ORDER BY updated DESC, id DESC LIMIT ?", (limit,))
            else:
                rows = self._db.execute(
                    """SELECT * FROM chats WHERE title LIKE ? ESCAPE '\\' OR id IN (
                        SELECT chat FROM turns WHERE id IN (
                            SELECT rowid FROM turns_text WHERE turns_text MATCH ?) OR content LIKE ? ESCAPE
                            '\\')
                    ORDER BY updated DESC, id DESC LIMIT ?""",
                    (_like(search.strip()), _match(words), _like(search.strip()), limit),
                )
            return tuple(_chat(row) for row in rows.fetchall())

    def chat(self, chat: int) -> Chat | None:
        """One chat, None where it was deleted meanwhile."""
        with self._explained(), self._lock:
            row = self._db.execute("SELECT * FROM chats WHERE id = ?", (chat,)).fetchone()
            return None if row is None else _chat(row)

    def turns(self, chat: int) -> tuple[Turn, ...]:
        """The chat's messages in order."""
        with self._explained(), self._lock:
            rows = self._db.execute("SELECT * FROM turns WHERE chat = ? ORDER BY id", (chat,)).fetchall()
            return tuple(_turn(row) for row in rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(
                "Chats are not being saved",
                f"{self.path}: {clean_line(str(error))}.",
                "Free disk space and check that the file is yours and writable; chatting goes on meanwhile.",
            ) from error


def _create_private(path: Path) -> None:
    """Makes the folder 0700 and the file 0600 before SQLite opens it; its -wal and -shm files inherit the
    mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _storable(text: str) -> str:
    """SQLite stores UTF-8, which has no lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def _match(words: list[str]) -> str:
    """An FTS5 query of literal words, the last one as a prefix; nothing in them is syntax."""
    quoted = ['"' + word.replace('"', '""') + '"' for word in words]
    return " ".join(quoted) + "*"


def _like(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _chat(row: tuple) -> Chat:
    known = SamplingChoice.__dataclass_fields__
    sampling = {name: value for name, value in json.loads(row[4]).items() if name in known}
    return Chat(row[0], row[1], row[2], row[3], SamplingChoice(**sampling), row[5], row[6])


def _turn(row: tuple) -> Turn:
    return Turn(row[0], row[2], row[3], row[4], row[5], AnswerStatistics(*row[6:10]), row[10])
