"""DiskWorkers: the threads that wait for the disk, so that nobody else does. Reads come before writes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

# Between two looks at what a tier wants done now and then.
TEND_SECONDS = 1.0
_MOST_THREADS = 4

_log = logging.getLogger("shardwise.tiers")


class DiskWorkers:
    """Runs jobs; a job handles its own failures. One thread is always left for reads."""

    def __init__(self, tend: Callable[[], None]) -> None:
        """tend: called now and then, by one of the threads."""
        self._tend = tend
        self._reads: deque[Callable[[], None]] = deque()
        self._writes: deque[Callable[[], None]] = deque()
        self._writing = 0
        self._ended = False
        self._change = threading.Condition()
        count = max(2, min(_MOST_THREADS, os.cpu_count() or 1))
        self._threads = [
            threading.Thread(target=self._work, args=(index == 0,), name=f"disk-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def read(self, job: Callable[[], None]) -> None:
        with self._change:
            self._reads.append(job)
            self._change.notify_all()

    def write(self, job: Callable[[], None]) -> None:
        with self._change:
            self._writes.append(job)
            self._change.notify_all()

    def close(self, patience: float) -> bool:
        """Drops what has not begun; False where a thread still waits for the disk after `patience` seconds."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, tends: bool) -> None:
        tended = time.monotonic()
        while not self._ended:
            job, writes = self._next(TEND_SECONDS if tends else None)
            if job is not None:
                try:
                    job()
                finally:
                    self._wrote(writes)
            if tends and time.monotonic() - tended >= TEND_SECONDS:
                self._tend_safely()
                tended = time.monotonic()

    def _next(self, patience: float | None) -> tuple[Callable[[], None] | None, bool]:
        """The next job, and whether it writes; None after `patience` seconds or at the end."""
        with self._change:
            self._change.wait_for(lambda: self._ended or self._reads or self._may_write(), patience)
            if self._ended:
                return None, False
            if self._reads:
                return self._reads.popleft(), False
            if self._may_write():
                self._writing += 1
                return self._writes.popleft(), True
            return None, False

    def _may_write(self) -> bool:
        return bool(self._writes) and self._writing < len(self._threads) - 1

    def _wrote(self, writes: bool) -> None:
        if writes:
            with self._change:
                self._writing -= 1
                self._change.notify_all()

    def _tend_safely(self) -> None:
        try:
            self._tend()
        except Exception:  # noqa: BLE001 - the edge of a thread: the next look may go better
            _log.exception("the page folder could not be looked after")
