"""Shows a download: a bar on a terminal, a line now and then in a pipe, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnProgress = Callable[[int, int], None]

_LINE_SECONDS = 5.0
_JSON_SECONDS = 0.5


@contextmanager
def shown_progress(name: str, as_json: bool) -> Iterator[OnProgress]:
    """The callback to give to `pull`, showing what it is told where the user looks."""
    if as_json:
        yield _throttled(lambda done, total: _print_json(name, done, total), _JSON_SECONDS)
    elif sys.stderr.isatty():
        with _bar(name) as on_progress:
            yield on_progress
    else:
        yield _throttled(lambda done, total: _print_line(name, done, total), _LINE_SECONDS)


def megabytes(count: int) -> str:
    """A size for people, such as 98.4 MB or 15.2 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _throttled(show: OnProgress, seconds: float) -> OnProgress:
    shown_at: list[float] = []
    finished: list[int] = []

    def on_progress(done: int, total: int) -> None:
        now = time.monotonic()
        early = bool(shown_at) and now - shown_at[-1] < seconds and done < total
        if early or finished == [total]:
            return
        shown_at[:], finished[:] = [now], [total] if done == total else []
        show(done, total)

    return on_progress


def _print_json(name: str, done: int, total: int) -> None:
    print(json.dumps({"model": name, "done": done, "total": total}), flush=True)


def _print_line(name: str, done: int, total: int) -> None:
    share = 100 * done // total if total else 0
    print(f"{name}: {megabytes(done)} of {megabytes(total)} ({share}%)", file=sys.stderr, flush=True)


@contextmanager
def _bar(name: str) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    label = TextColumn("{task.description}", markup=False)
    with Progress(label, *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
