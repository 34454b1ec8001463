"""LogsScreen: follows the log file of the server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Log, Static

from app.background import LOG_TAIL_BYTES
from app.text_safety import TextCleaner, clean_line

FOLLOW_SECONDS = 0.5
MOST_LINES = 5000


class LogsScreen(Screen[None]):
    """The end of the log, and what is added while one looks."""

    DEFAULT_CSS = """
    LogsScreen {
        & > Static { height: 1; padding: 0 1; background: $panel; color: $text-muted; }
        & > Log { height: 1fr; padding: 0 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f9", "app.pop_screen", "Back", id="logs.back", tooltip="Back to where you were"),
        Binding("c", "copy_path", "Copy path", id="logs.copy", tooltip="Copy the path of the log file"),
    ]
    HELP = """
# The server's log

Follows the file that the server in the background writes. Prompts and answers never appear in it.
"""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self._path = path
        self._position: int | None = None
        self._cleaner = TextCleaner()

    def compose(self) -> ComposeResult:
        yield Static(clean_line(str(self._path or "no log")), markup=False)
        yield Log(max_lines=MOST_LINES, auto_scroll=True)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(Log).focus()
        if self._path is None or not self._path.exists():
            self.query_one(Log).write_line("No log on this machine: the server was started elsewhere.")
        self._follow()
        self.set_interval(FOLLOW_SECONDS, self._follow)

    def _follow(self) -> None:
        """Writes what the file has gained; starts over where it became shorter (a new server)."""
        if self._path is None:
            return
        try:
            size = self._path.stat().st_size
            if self._position is None or size < self._position:
                self._position = max(0, size - LOG_TAIL_BYTES)
            if size == self._position:
                return
            with self._path.open("rb") as file:
                file.seek(self._position)
                added = file.read(1024 * 1024)
        except OSError:
            return
        self._position += len(added)
        self.query_one(Log).write(self._cleaner.feed(added.decode(errors="replace")))

    def action_copy_path(self) -> None:
        self.app.copy_to_clipboard(str(self._path))
        self.notify("The path is in the clipboard", markup=False)
