"""Dependencies: what the TUI asks of the outside (library, servers, files), in one value that tests replace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from app import background, history
from app.background import ServerRecord, StartedServer
from app.tui import preferences


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to offer: `bytes` is its size on disk, or to download where it is not installed; None if not known."""

    name: str
    bytes: int | None
    installed: bool
    note: str = ""


Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The outside.

    Attributes:
        history: the chat database; None keeps chats in memory.
        preferences: the file of remembered settings.
        choices: the models to offer, best first; may block (called in a thread).
        fetch: makes a model wholly local, reporting (bytes done, bytes in total); may block (in a thread).
        find: a running server; one that serves the named model, where one is named.
        start: starts a server for a model in the background.
        exports: the folder that exported chats go to.
    """

    history: Path | None
    preferences: Path
    choices: Callable[[], tuple[ModelChoice, ...]]
    fetch: Callable[[str, Report], None]
    find: Callable[[str | None], Awaitable[ServerRecord | None]]
    start: Callable[[str], StartedServer]
    exports: Path


def of_this_machine(key: str | None = None) -> Dependencies:
    """The real ones."""
    from app.tui import library

    return Dependencies(
        history=history.default_path(),
        preferences=preferences.default_path(),
        choices=library.choices,
        fetch=library.fetch,
        find=lambda model: background.find_server(model, key),
        start=background.start_server,
        exports=Path.cwd(),
    )
