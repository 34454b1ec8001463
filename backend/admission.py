"""Admission: who waits, who awaits pages from lower tiers, and who begins. What comes after is the scheduler's."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Many

from backend.prefills import Prefills
from backend.room import Room
from backend.sequence import Sequence, Status
from backend.step_work import StepWork
from kvcache.cache_manager import CacheManager
from kvcache.hit import Hit


class Admission:
    """Owns the sequences that do not run yet; the scheduler takes out those that end.

    At most `max_sequences` are admitted at a time, and steps have `step_tokens`. `run` is told of each one that runs
    from now on, before the next is looked at.

    Attributes:
        waiting: those without pages, in order of key.
        fetching: those whose pages are on their way, in order of admission.
    """

    def __init__(
        self,
        cache: CacheManager,
        prefills: Prefills,
        step_tokens: int,
        max_sequences: int,
        run: Callable[[Sequence], None],
    ) -> None:
        self._cache = cache
        self._prefills = prefills
        self._step_tokens = step_tokens
        self._max_sequences = max_sequences
        self._run = run
        self.waiting: list[Sequence] = []
        self.fetching: list[Sequence] = []

    def wait(self, sequence: Sequence) -> None:
        """Takes in a sequence without pages. Its key puts it before all that arrived later."""
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=order)

    def send_back(self, sequence: Sequence) -> None:
        """Has an admitted sequence wait again; it gives its pages back."""
        self._give_back(sequence)
        self.wait(sequence)

    def stop_fetching(self) -> None:
        """All that await pages wait again: these will not come."""
        for sequence in tuple(self.fetching):
            self.fetching.remove(sequence)
            self.send_back(sequence)

    def take_in_fetched(self) -> None:
        """Lets run whose pages have arrived; where one has not, the sequence begins after what the device has."""
        for sequence in [one for one in self.fetching if one.pages.fetching == 0]:
            self.fetching.remove(sequence)
            if sequence.pages.fetch_failed:
                sequence.may_fetch = False
                self.send_back(sequence)
            else:
                self._run(sequence)

    def admit(self, work: StepWork, running: Many[Sequence]) -> None:
        """Starts waiting sequences in order, while budget and room last; passes those that wait for others' pages."""
        room = Room(self._cache, self._step_tokens, self._max_sequences, [*running, *self.fetching])
        passed = 0
        while passed < len(self.waiting) and work.budget > 0 and room.places > 0:
            sequence = self.waiting[passed]
            hit = self._look_up(sequence)
            if hit is None:
                passed += 1
                continue
            if not room.suffices(sequence, hit):
                return
            if not self._start(sequence, hit, work):
                if room.empty and not self._cache.pages_in_transfer:
                    raise RuntimeError("the pool cannot hold a sequence alone that it was sized for")
                return
            room.give(sequence)

    def _look_up(self, sequence: Sequence) -> Hit | None:
        """The prefix that a waiting sequence would begin after, or None while others are making it longer."""
        if self._prefills.ahead_of(sequence, sequence.prefix):
            return None
        hit = self._cache.look_up(sequence.pages, sequence.length, sequence.tokens, fetch=sequence.may_fetch)
        sequence.prefix = hit.tokens
        return None if hit.arriving or self._prefills.ahead_of(sequence, hit.tokens) else hit

    def _start(self, sequence: Sequence, hit: Hit, work: StepWork) -> bool:
        """Admits a waiting sequence, or changes nothing and says False where pages are lacking after all."""
        if not self._cache.adopt(sequence.pages, hit):
            return False
        sequence.hit, sequence.computed, sequence.planned = hit, hit.tokens, hit.tokens
        if hit.missing:
            self.waiting.remove(sequence)
            sequence.status = Status.FETCHING
            self.fetching.append(sequence)
            return True
        count = min(sequence.remaining, work.budget)
        if not self._cache.grow(sequence.pages, sequence.computed + count):
            self._give_back(sequence)
            return False
        self.waiting.remove(sequence)
        self._run(sequence)
        work.give(sequence, count)
        return True

    def _give_back(self, sequence: Sequence) -> None:
        """Releases its pages; it will begin again after what is cached by then."""
        self._cache.release(sequence.pages)
        sequence.forget()

    def queue(self, status: Status) -> list[Sequence]:
        """Where a sequence of this status is kept: WAITING or FETCHING."""
        return {Status.WAITING: self.waiting, Status.FETCHING: self.fetching}[status]


def order(sequence: Sequence) -> tuple[int, int]:
    """Who comes first, as a sort key."""
    return sequence.key
