"""Departures: which sequences end from without, cancelled or past their deadline. Ending them is the scheduler's."""

from __future__ import annotations

from heapq import heappop, heappush

from backend.events import EndReason


class Departures:
    """Knows sequences by number, and does not ask whether one has ended meanwhile."""

    def __init__(self) -> None:
        self._cancelled: list[int] = []
        self._deadlines: list[tuple[float, int]] = []  # heap of (deadline, number); finished ones leave late

    def cancel(self, number: int) -> None:
        """This one ends next."""
        self._cancelled.append(number)

    def expect(self, number: int, deadline: float) -> None:
        """This one ends once it is so late on the engine's clock."""
        heappush(self._deadlines, (deadline, number))

    def due(self, now: float) -> list[tuple[int, EndReason]]:
        """Who is to end now, each only once for each reason: the cancelled first, then by deadline."""
        due: list[tuple[int, EndReason]] = [(number, "cancelled") for number in self._cancelled]
        self._cancelled = []
        while self._deadlines and self._deadlines[0][0] <= now:
            due.append((heappop(self._deadlines)[1], "deadline"))
        return due
