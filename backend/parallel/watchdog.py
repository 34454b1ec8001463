"""Watchdog: ends a process whose collective cannot be interrupted, after saying which and why.

The groups over main memory need none: their calls end by themselves. A call of NCCL, or a kernel that waits for another
GPU's word, does not.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

# What a process ends with that could not leave a collective.
HUNG_STATUS = 86
TICK_SECONDS = 0.25
log = logging.getLogger("shardwise.collectives")


class Mark(Protocol):
    """A place in a device's queue; torch.cuda.Event is one."""

    def query(self) -> bool: ...


class Watchdog:
    """One thread, which sleeps between looks; of one group.

    A stream that is being captured must not be marked, and a capture beside this thread needs torch's
    `capture_error_mode="thread_local"`.
    """

    def __init__(self, limit: float, describe: Callable[[str, float], str]) -> None:
        """describe: (what, seconds waited) -> the line that says why this process ends; may take a moment."""
        self._limit = limit
        self._describe = describe
        self._call: tuple[str, float] | None = None
        self._marked: tuple[Mark, str, float] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="collectives-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """For calls that return when all is done."""
        self._call = (what, time.monotonic())
        try:
            yield
        finally:
            self._call = None

    @property
    def wants_mark(self) -> bool:
        """Whether the queue's last mark has been reached: one at a time is enough to see that it moves on."""
        return self._marked is None

    def mark(self, mark: Mark, what: str) -> None:
        """For calls that only put work into a device's queue; `mark` stands behind that work."""
        self._marked = (mark, what, time.monotonic())

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            hung = self._look(time.monotonic())
            if hung is not None:
                self._end(*hung)

    def _look(self, now: float) -> tuple[str, float] | None:
        """What has waited too long, and how long."""
        call, marked = self._call, self._marked
        if marked is not None and marked[0].query():
            self._marked = marked = None
        for what, began in ([call] if call else []) + ([marked[1:]] if marked else []):
            if now - began > self._limit:
                return what, now - began
        return None

    def _end(self, what: str, waited: float) -> None:
        log.critical("%s", self._describe(what, waited))
        for handler in logging.getLogger().handlers:
            handler.flush()
        sys.stderr.flush()
        # No way back from a call that never returns; what is on the device goes with the process.
        os._exit(HUNG_STATUS)
