"""Depth: how many batches should be in flight, from what stages and links were measured to take. Pure.

With m batches of n/m sequences each, a sequence gets its next token when its batch has been through all stages and
links, and when the slowest stage has had its turn with all m:

    period(m) = max( sum of stage times + link delays, m x slowest stage time )      stage time = a + b n/m
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# A period has to be shorter by so much for one more batch to be worth it.
GAIN = 0.02
# A stage that had nothing to do for so long before a batch kept it in no queue.
IDLE_SECONDS = 0.0002


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds that a stage takes for a batch of one token a sequence: `fixed`, and `each` sequence's."""

    fixed: float
    each: float

    def seconds(self, sequences: float) -> float:
        return self.fixed + self.each * sequences


def fit(samples: Sequence[tuple[int, float]]) -> StageTime:
    """The line nearest to (sequences, seconds), neither part of it below 0."""
    if not samples:
        return StageTime(0.0, 0.0)
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0
    slope = max(0.0, slope)
    fixed = mean_y - slope * mean_x
    if fixed < 0.0:
        return StageTime(0.0, sum(x * y for x, y in samples) / sum(x * x for x, _ in samples))
    return StageTime(fixed, slope)


def period(stages: Sequence[StageTime], delays: float, sequences: int, batches: int) -> float:
    """Seconds from one token of a sequence to its next, with so many batches in flight."""
    times = [stage.seconds(sequences / batches) for stage in stages]
    return max(sum(times) + delays, batches * max(times))


def best_depth(stages: Sequence[StageTime], delays: float, sequences: int, most: int) -> int:
    """The count of batches with the shortest period, the least one of those that are nearly as short."""
    best, shortest = 1, float("inf")
    for batches in range(1, min(most, max(1, sequences)) + 1):
        seconds = period(stages, delays, sequences, batches)
        if seconds < shortest * (1.0 - GAIN):
            best, shortest = batches, seconds
    return best


class DepthMeter:
    """What was measured of late, and what follows of it.

    Link delays can only be told from batches that waited in no queue: those that found each stage idle. Batches of one
    size say nothing of smaller ones, so two sizes are kept in sight: the whole, and what each stage would get.
    """

    WINDOW = 64
    # Batches of each size that count, and for how many others one that did not come any more is believed.
    OF_A_SIZE = 16
    MEMORY = 1024
    # Sizes that differ by less tell the same.
    ALIKE = 1.5

    def __init__(self, stages: int, most: int) -> None:
        """most: batches that may be in flight."""
        self._most = most
        self._count = stages
        # Of each size: each stage's seconds, of the last batches; and when the last of them came.
        self._samples: dict[int, deque[tuple[float, ...]]] = {}
        self._seen: dict[int, int] = {}
        self._observed = 0
        self._delays: deque[float] = deque(maxlen=self.WINDOW)
        self._fits: list[StageTime] | None = None

    def observe(self, sequences: int, times: Sequence[tuple[float, float]], trip: float) -> None:
        """A batch with one token of each of so many sequences: (computed, idle before) of each stage, and all of it."""
        if len(times) != self._count or not sequences:
            return
        self._fits = None
        self._observed += 1
        self._samples.setdefault(sequences, deque(maxlen=self.OF_A_SIZE)).append(tuple(one for one, _ in times))
        self._seen[sequences] = self._observed
        self._forget()
        if all(waited > IDLE_SECONDS for _, waited in times):
            self._delays.append(max(0.0, trip - sum(seconds for seconds, _ in times)))

    @property
    def stages(self) -> tuple[StageTime, ...]:
        """The stages' times as fitted."""
        if self._fits is None:
            self._fits = [
                fit([(size, _median([one[stage] for one in batches])) for size, batches in self._samples.items()])
                for stage in range(self._count)
            ]
        return tuple(self._fits)

    @property
    def delays(self) -> float:
        """Seconds of a batch's way that nobody computes in: the median."""
        return _median(self._delays)

    def depth(self, sequences: int) -> int:
        """How many batches should be in flight for so many live sequences."""
        usual = min(self._count, self._most, max(1, sequences))
        for batches in (usual, 1):
            if not self._knows(sequences / batches):
                return batches
        return best_depth(self.stages, self.delays, sequences, self._most)

    def _knows(self, size: float) -> bool:
        """Whether batches of about this size were measured."""
        return any(size / self.ALIKE < known < size * self.ALIKE for known in self._samples)

    def _forget(self) -> None:
        for size, seen in list(self._seen.items()):
            if self._observed - seen > self.MEMORY:
                del self._seen[size], self._samples[size]


def _median(values: Collection[float]) -> float:
    """0 of none."""
    return sorted(values)[len(values) // 2] if values else 0.0
