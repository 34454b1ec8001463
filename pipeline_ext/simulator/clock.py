"""SimulatedClock: what happens when, in one order that a seed decides."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class SimulatedClock:
    """Time goes on only in `run`. `skew` is what the wall clock is off by; nobody may look at it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, when: float, action: Action) -> None:
        """Does this at a time; those of equal times in the order in which they were asked for."""
        self._count += 1
        heapq.heappush(self._queue, (max(when, self.now), self._count, action))

    def after(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def run(self, until: float, enough: Callable[[], bool]) -> None:
        """Lets happen what happens until that time, or until it is enough."""
        while not enough():
            if not self._queue or self._queue[0][0] > until:
                self.now = max(self.now, until)
                return
            when, _, action = heapq.heappop(self._queue)
            self.now = when
            action()
