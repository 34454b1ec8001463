"""StepWork: the tokens given to sequences while a step is planned. Who gets how many is left to the scheduler."""

from __future__ import annotations

from backend.batch import Batch, Slice
from backend.sequence import Sequence
from kvcache.transfer import Transfer


class StepWork:
    """Grants of tokens under the step's budget; a grant can be taken back until the Batch is made."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._counts: dict[Sequence, int] = {}

    def give(self, sequence: Sequence, count: int) -> None:
        self._counts[sequence] = count
        self.budget -= count

    def take_back(self, sequence: Sequence) -> None:
        """Without effect for a sequence that was given nothing."""
        self.budget += self._counts.pop(sequence, 0)

    def batch(self, step: int, transfers: tuple[Transfer, ...], until: int | None = None) -> Batch:
        """What was given, which counts as planned from now on."""
        slices = tuple(_slice(sequence, count) for sequence, count in self._counts.items())
        return Batch(step, slices, transfers, until)


def _slice(sequence: Sequence, count: int) -> Slice:
    start, length = sequence.planned, sequence.length
    sequence.planned = start + count
    return Slice(
        sequence=sequence.number,
        start=start,
        tokens=sequence.tokens(start, start + count),
        prompt_length=len(sequence.request.prompt),
        length=length,
        spans=sequence.spans(),
        sample=sequence.sample_task if start + count == length else None,
        ticket=sequence.ticket,
    )
