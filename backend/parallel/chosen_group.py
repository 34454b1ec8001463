"""ChosenGroup: sends each message through the group that was fastest at its size, and the pure rule that chooses."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from backend.parallel.group import Group

# A group later in the order of preference has to be so much faster: less is what a busy machine makes of equals.
ADVANTAGE = 1.2


def choose(seconds: Sequence[Mapping[int, float]]) -> tuple[int, ...]:
    """Which of several groups serves each measured size best, by size.

    seconds: for each group, in order of preference, what a message of so many bytes took; a size it cannot serve is
    missing. Each size is served by one at least.
    """
    sizes = sorted({size for times in seconds for size in times})
    best = []
    for size in sizes:
        able = [index for index, times in enumerate(seconds) if size in times]
        chosen = able[0]
        for index in able[1:]:
            if seconds[index][size] * ADVANTAGE < seconds[chosen][size]:
                chosen = index
        best.append(chosen)
    return tuple(best)


def limits(sizes: Sequence[int], best: Sequence[int]) -> tuple[tuple[float, int], ...]:
    """(up to so many bytes, group) in order of size, the last without end: borders lie between two measured sizes."""
    found = []
    for (size, group), (following, next_group) in pairwise(zip(sizes, best, strict=True)):
        if group != next_group:
            found.append((math.sqrt(size * following), group))
    return (*found, (math.inf, best[-1]))


class ChosenGroup:
    """Made alike on every rank, so that all send a message the same way.

    Attributes:
        explanation: one line, who serves what and why.
        only: the group that serves everything, where it is one.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        table: Sequence[tuple[float, int]],
        explanation: str,
        on_close: Callable[[], None],
    ) -> None:
        """groups: some may have a `serves` that says which tensors they take.

        table: as `limits` makes it; its last group takes any tensor, and gathers. on_close: called after the groups are
        closed.
        """
        self._groups = tuple(groups)
        self._borders = [border for border, _ in table]
        self._serving = [groups[index] for _, index in table]
        self._general = self._serving[-1]
        self._on_close = on_close
        self.explanation = explanation
        self.only = self._general if len(groups) == 1 else None
        if self.only is not None:
            # Nothing to decide in a call that takes two microseconds.
            self.all_reduce = self.only.all_reduce

    @property
    def rank(self) -> int:
        return self._general.rank

    @property
    def size(self) -> int:
        return self._general.size

    @property
    def name(self) -> str:
        return "chosen by size"

    def all_reduce(self, x: Tensor) -> None:
        group = self._serving[bisect_left(self._borders, x.nbytes)]
        serves = getattr(group, "serves", None)
        (group if serves is None or serves(x) else self._general).all_reduce(x)

    def gather(self, x: Tensor) -> Tensor | None:
        return self._general.gather(x)

    def close(self) -> None:
        for group in self._groups:
            group.close()
        self._on_close()


def explain(names: Sequence[str], table: Sequence[tuple[float, int]], seconds: Sequence[Mapping[int, float]]) -> str:
    """One line for a log: who serves up to where, and the microseconds measured by size."""
    served = [f"{names[index]} {'beyond' if math.isinf(end) else f'up to {_bytes(end)}'}" for end, index in table]
    if len(table) == 1:
        served = [f"{names[table[0][1]]} at every size"]
    figures = [
        f"{name} " + ", ".join(f"{_bytes(size)} {taken * 1e6:.0f}" for size, taken in sorted(times.items()))
        for name, times in zip(names, seconds, strict=True)
    ]
    return f"all-reduce over {', '.join(served)} (measured, in µs: {'; '.join(figures)})"


def _bytes(size: float) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.0f} {unit}"
    return f"{size:.0f} B"
