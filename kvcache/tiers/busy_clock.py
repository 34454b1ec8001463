"""BusyClock: the time that work takes which several threads do at once, shared among them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Runs while anything is worked on, at 1/n of a second per second for each of n at once.

    So the seconds of all pieces add up to the time in which there was work, and bytes over seconds is what the disk
    gave to all, however many threads asked it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._guard = clock, threading.Lock()
        self._seconds = self._looked = 0.0
        self._working = 0

    @contextmanager
    def work(self) -> Iterator[Callable[[], float]]:
        """Around one piece; what it yields gives, once the piece is over, its seconds."""
        began = self._step(1)
        ended = began
        try:
            yield lambda: ended - began
        finally:
            ended = self._step(-1)

    def _step(self, change: int) -> float:
        """The clock at this moment, from which on so many more work."""
        with self._guard:
            now = self._clock()
            if self._working:
                self._seconds += (now - self._looked) / self._working
            self._looked = now
            self._working += change
            return self._seconds
