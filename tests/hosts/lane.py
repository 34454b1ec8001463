"""Lane: one direction of a cable: what is put in comes out later, in order, at no more than its bandwidth. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# Beyond what a cable carries in this time, a switch has no room and drops what comes.
ROOM_SECONDS = 0.5
LEAST_ROOM_BYTES = 1 << 20


@dataclass
class Lane:
    """Times are monotonic seconds. `delay` in seconds; `bandwidth` in bytes a second, None for no limit."""

    delay: float = 0.0
    bandwidth: float | None = None
    _held: deque[tuple[float, bytes]] = field(default_factory=deque)
    _free: float = 0.0

    def put(self, now: float, frame: bytes) -> bool:
        """Takes a frame, unless it would wait too long for its turn; whether it did."""
        if self.bandwidth is None:
            self._free = now
        else:
            waiting = max(0.0, self._free - now) * self.bandwidth
            if waiting + len(frame) > max(LEAST_ROOM_BYTES, self.bandwidth * ROOM_SECONDS):
                return False
            self._free = max(now, self._free) + len(frame) / self.bandwidth
        due = self._free + self.delay
        # A cable that became faster still keeps the order of what it holds.
        self._held.append((max(due, self._held[-1][0]) if self._held else due, frame))
        return True

    def due(self, now: float) -> list[bytes]:
        """What comes out by now."""
        out = list[bytes]()
        while self._held and self._held[0][0] <= now:
            out.append(self._held.popleft()[1])
        return out

    @property
    def next_due(self) -> float | None:
        """When the next frame comes out; None where the lane is empty."""
        return self._held[0][0] if self._held else None
