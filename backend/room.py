"""Room: what sequences that have been admitted will still take of places and pages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from backend.errors import SettingError
from backend.sequence import Sequence
from kvcache.cache_manager import CacheManager
from kvcache.hit import Hit


def longest_sequence(cache: CacheManager, max_context: int, step_tokens: int) -> int:
    """Positions that a sequence may take so that the pool always holds it alone. SettingError for less than 2."""
    total = cache.statistics().pages_total
    lengths = range(1, max_context + 1)
    longest = bisect_right(lengths, total, key=lambda one: cache.most_pages(one, step_tokens))
    if longest < 2:
        raise SettingError(
            "The page pool is too small for any request.",
            f"It has {total} pages, and a sequence of two tokens needs {cache.most_pages(2, 1)}.",
            "Give a larger kv-pool.",
        )
    return longest


class Room:
    """Counts, while a step is planned, the places that are left and the pages promised to admitted sequences.

    These are the pages that their known tokens will still take, and one page per group and sequence to grow into: who
    was admitted into less would soon be preempted again.
    """

    def __init__(self, cache: CacheManager, step_tokens: int, places: int, admitted: Iterable[Sequence]) -> None:
        self._cache = cache
        self._step_tokens = step_tokens
        self._promised = 0
        self.places = places
        self.empty = True
        for sequence in admitted:
            self.give(sequence)

    def give(self, sequence: Sequence) -> None:
        """This sequence has been admitted."""
        self.empty = False
        self.places -= 1
        self._promised += self._pages_to_come(sequence) + len(sequence.tables)

    def suffices(self, sequence: Sequence, hit: Hit) -> bool:
        """Whether a waiting sequence can be given all that it will take, which the only one always can."""
        needed = self._cache.most_pages(sequence.length + 1, self._step_tokens) - hit.held
        return self.empty or self._promised + needed <= self._cache.available_pages

    def _pages_to_come(self, sequence: Sequence) -> int:
        """Pages that an admitted sequence will still take until its known tokens are computed."""
        if sequence.remaining <= 1:
            return 0
        held = sum(len(table.ids) for table in sequence.tables)
        return max(0, self._cache.most_pages(sequence.length + 1, self._step_tokens) - held)
