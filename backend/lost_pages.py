"""LostPages: which pages of running sequences stages have lost, and the batches that compute them again.

They are computed again in place: the same tables and pages, by batches that only the stages up to the last one that
lost something compute, and that sample nothing. Stages that have their pages write the same values to them once more.
Sequences share pages, always from the first position on, and each of these is computed again once: while one sequence
does it, the others that hold some of its pages wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

from backend.batch import Batch
from backend.sequence import Sequence
from backend.shares import token_share
from backend.step_work import StepWork


class LostPages:
    """The scheduler tells of losses and commits; what is in flight shows in the sequences.

    share: lets others have what a sequence, whose `computed` has risen from the number given, holds complete now.
    """

    def __init__(self, step_tokens: int, share: Callable[[Sequence, int], None]) -> None:
        self._step_tokens = step_tokens
        self._share = share
        self._missing: set[int] = set()
        self._until = 0
        self._restored_last = False

    @property
    def until(self) -> int:
        """Batches that compute lost pages again concern the stages before this one; 0 where nothing is lost."""
        return self._until

    def left(self, running: Iterable[Sequence]) -> bool:
        """Whether anything is left to compute again; where all these sequences are complete, the loss is over."""
        if self._until and not any(one.computed < one.lost for one in running):
            self._until = 0
            self._missing.clear()
        return self._until > 0

    def in_turn(self, running: Many[Sequence], step: int, depth: int, plan: Callable[[int], Batch]) -> Batch:
        """Computes lost pages again in turn with other work, so that whoever is complete again moves on.

        running: in the order of who comes first. plan: makes a batch of other work, one of `depth` in flight.
        """
        self._restored_last = not self._restored_last
        first = self._restore(running, step, depth) if self._restored_last else plan(depth)
        if first.slices or first.transfers:
            return first
        return plan(depth) if self._restored_last else self._restore(running, step, depth)

    def _restore(self, running: Many[Sequence], step: int, depth: int) -> Batch:
        """A batch that computes again what stages have lost, the first sequences' first."""
        tokens = sum(max(0, one.lost - one.computed) for one in running)
        work = StepWork(token_share(tokens, self._step_tokens, depth))
        busy = BusyPages(running)
        for sequence in running:
            if work.budget > 0 and sequence.restoring and self._may_restore(sequence, busy):
                work.give(sequence, min(sequence.lost - sequence.planned, work.budget))
                busy.add(sequence)
        return work.batch(step, (), self._until)

    def _may_restore(self, sequence: Sequence, busy: BusyPages) -> bool:
        """Passes over what others have computed again. Whether something is left that nobody is computing now."""
        if sequence.planned > sequence.computed:
            return True
        start = sequence.computed
        sequence.computed = sequence.planned = max(start, self._first_missing(sequence))
        self._share(sequence, start)
        return sequence.restoring and busy.holds_none_of(sequence)

    def lose(self, holders: Iterable[Sequence], stages: tuple[int, ...]) -> None:
        """These stages have lost all pages, of which these sequences hold some; whoever held others has let go."""
        holders = list(holders)
        before = self._until if any(one.computed < one.lost for one in holders) else 0
        self._until = max(before, max(stages) + 1)
        self._missing = {page for one in holders for page in _pages(one)}
        for one in holders:
            one.lost = max(one.lost, one.computed)
            one.computed = one.planned = 0

    def restored(self, sequence: Sequence) -> None:
        """All below the sequence's `computed` is there again."""
        for table in sequence.tables:
            self._missing.difference_update(table.ids[: sequence.computed // table.page_tokens])

    def _first_missing(self, sequence: Sequence) -> int:
        """From which position on the sequence must be computed again, at most `lost`."""
        return min(sequence.lost, *(self._first(table.ids) * table.page_tokens for table in sequence.tables))

    def _first(self, pages: list[int]) -> int:
        return next((place for place, page in enumerate(pages) if page in self._missing), len(pages))


class BusyPages:
    """Pages that slices in flight, or of the batch that is being made, compute again: nobody else does meanwhile."""

    def __init__(self, running: Iterable[Sequence]) -> None:
        in_flight = (one for one in running if one.computed < min(one.planned, one.lost))
        self._pages = {page for one in in_flight for page in _pages(one)}

    def holds_none_of(self, sequence: Sequence) -> bool:
        return self._pages.isdisjoint(_pages(sequence))

    def add(self, sequence: Sequence) -> None:
        self._pages.update(_pages(sequence))


def can_restore(sequence: Sequence) -> bool:
    """Whether the sequence still holds the pages of all its positions: a window may have left the first ones behind."""
    return not any(table.first for table in sequence.tables)


def _pages(sequence: Sequence) -> list[int]:
    return [page for table in sequence.tables for page in table.ids]
