"""HandOvers: sequences' cached pages on their way to another engine, by way of the disk tier, until they are there.

Prefill and decode apart: the engine that computed a prompt stores its full pages as signed records; the one that goes
on finds them by their keys, as it finds any page on disk. What cannot be stored is computed again there, so nothing
waits for a page that will not come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from kvcache.lower_tiers import LowerTiers
from kvcache.page_pool import PagePool
from kvcache.prefix_index import IndexedPage, PrefixIndex
from kvcache.transfer import PageKey, Tier

# At most this many are on their way at a time: fewer than wait for the disk without being refused (`staging`).
MOST_STORES = 32


class HandOvers:
    """Of one cache manager. A hand-over is done when the disk has, or has refused, each of its pages."""

    def __init__(self, pool: PagePool, index: PrefixIndex, lower: LowerTiers) -> None:
        self._pool, self._index, self._lower = pool, index, lower
        self._next = 0
        self._missing: dict[int, set[PageKey]] = {}
        # Keys whose pages still have to be ordered, in the order in which a reader wants them.
        self._queue: deque[PageKey] = deque()
        self._queued: set[PageKey] = set()
        self._done: list[int] = []

    @property
    def running(self) -> bool:
        """Whether one is not done yet."""
        return bool(self._missing)

    def begin(self, keys: Iterable[PageKey]) -> int:
        """A new hand-over of these pages, as far as they are cached here: its number."""
        number, self._next = self._next, self._next + 1
        missing = {key for key in keys if self._wanted(key)}
        if not missing:
            self._done.append(number)
            return number
        self._missing[number] = missing
        return number

    def take_done(self) -> list[int]:
        """Those that have been done since the last call."""
        done, self._done = self._done, []
        return done

    def order(self) -> None:
        """Orders the next stores, as many as may run."""
        while self._queue and self._lower.book.running_to(Tier.DISK) < MOST_STORES:
            key = self._queue.popleft()
            self._queued.discard(key)
            entry = self._index.find(key)
            if entry is None or not self._lower.may_store(entry):
                self.stored(key)
            elif self._pool.is_pinned(entry.page):
                # Somebody's fetch or store has it; it is looked at again with the next batch.
                self._enqueue(key)
                return
            else:
                self._pool.pin(entry.page)
                self._lower.store_from_device(entry)

    def stored(self, key: PageKey) -> None:
        """The store of this page is over, well or not."""
        for number in [one for one, missing in self._missing.items() if key in missing]:
            self._missing[number].discard(key)
            if not self._missing[number]:
                del self._missing[number]
                self._done.append(number)

    def _wanted(self, key: PageKey) -> bool:
        """Whether this page has to be waited for; one that nobody stores yet is put into the queue."""
        entry = self._index.find(key)
        if entry is None:
            return False
        if self._lower.is_storing(key) or key in self._queued:
            return True
        if not self._may_store_again(entry):
            return False
        self._enqueue(key)
        return True

    def _may_store_again(self, entry: IndexedPage) -> bool:
        """Whether the disk would take it. One that it had, and has given up again, counts as never stored."""
        entry.stored = entry.stored and self._lower.on_disk(entry.key)
        return self._lower.may_store(entry)

    def _enqueue(self, key: PageKey) -> None:
        self._queue.append(key)
        self._queued.add(key)
