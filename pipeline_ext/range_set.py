"""RangeSet: which byte ranges of a file are wanted or here, as sorted half-open ranges. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Range = tuple[int, int]


class RangeSet:
    """Half-open ranges (first, stop), joined where they touch; does not change once made."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        joined: list[Range] = []
        for first, stop in sorted(ranges):
            if first >= stop:
                continue
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((first, stop))
        self._ranges = tuple(joined)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    @property
    def bytes(self) -> int:
        return sum(stop - first for first, stop in self._ranges)

    def without(self, other: RangeSet) -> RangeSet:
        """What of this is not in `other`."""
        left: list[Range] = []
        others = iter(other)
        taken = next(others, None)
        for first, stop in self._ranges:
            while taken is not None and taken[1] <= first:
                taken = next(others, None)
            at = first
            while taken is not None and taken[0] < stop:
                left.append((at, taken[0]))
                at = max(at, taken[1])
                if taken[1] >= stop:
                    break
                taken = next(others, None)
            left.append((at, stop))
        return RangeSet(left)

    def pieces(self, most: int) -> Iterator[Range]:
        """The same bytes in ranges of at most `most`."""
        for first, stop in self._ranges:
            for start in range(first, stop, most):
                yield start, min(start + most, stop)
