"""Trial: a batch that failed, run again by halves, down to what fails alone. Running them is the engine's."""

from __future__ import annotations

from dataclasses import replace

from backend.batch import Batch, Sampled, Slice


class Trial:
    """Parts are run one after the other, alone. What they bring is committed together, as the batch would have been.

    Running a slice again writes the same K and V to the same places, so what had been done does no harm. Transfers have
    begun by then, and are not ordered twice.
    """

    def __init__(self) -> None:
        self._parts: list[Batch] = []
        self._slices: list[Slice] = []
        self._sampled: list[Sampled | None] = []

    def next(self) -> Batch | None:
        """The part to be run now; None where all have been."""
        return self._parts.pop() if self._parts else None

    def passed(self, part: Batch, sampled: list[Sampled | None]) -> None:
        """This part ran, and brought this."""
        self._slices += part.slices
        self._sampled += sampled

    def failed(self, part: Batch) -> Slice | None:
        """The batch, or this part of it, failed: its halves are next; or the slice that fails alone."""
        if len(part.slices) == 1:
            return part.slices[0]
        middle = len(part.slices) // 2
        self._parts += [replace(part, slices=part.slices[middle:]), replace(part, slices=part.slices[:middle])]
        return None

    def result(self) -> tuple[Batch, list[Sampled | None]]:
        """The part of the batch that ran, and what it brought."""
        return Batch(0, tuple(self._slices)), self._sampled
