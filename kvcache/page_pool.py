"""PagePool: owns which pages are free, cached or held, and in which order cached ones go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

from kvcache.statistics import CACHED, FREE, SHARED, USED


class PagePool:
    """Pages 0 to `total - 1`. Each is free, cached (nobody holds it, its content is kept), or held.

        take            free -> held          keep, forget    whether a page's content is worth keeping
        release         held -> cached where it is kept, else free
        share           cached -> held, or one holder more
        evict           cached -> free, the one released longest ago first

    Tables hold pages by count. A transfer that needs a page as it is pins it: then it is neither evicted nor freed.
    `states` has a byte a page, as in CacheMap.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a pool of {total} pages holds nothing")
        self.total = total
        # The last one freed is the first one handed out again, while processors' caches still know it.
        self._free = list(range(total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._counts = [0] * total
        self._kept = bytearray(total)
        self._pinned: set[int] = set()
        self._pinned_cached = 0  # cached ones among them
        self.states = bytearray([FREE]) * total
        self.shared = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def evictable(self) -> int:
        """Cached pages that no transfer needs."""
        return len(self._cached) - self._pinned_cached

    @property
    def used(self) -> int:
        return self.total - len(self._free) - len(self._cached)

    @property
    def pinned(self) -> int:
        return len(self._pinned)

    def pinned_pages(self) -> list[int]:
        """The pinned pages, in order of their ids."""
        return sorted(self._pinned)

    def count(self, page: int) -> int:
        """How many tables hold this page."""
        return self._counts[page]

    def take(self, count: int) -> list[int] | None:
        """`count` free pages, each now held once; None, and nothing changed, where fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._counts[page] = 1
            self.states[page] = USED
        return taken

    def share(self, page: int) -> None:
        """One more table holds this page. Raises ValueError for a free page: its content is already lost."""
        count = self._counts[page]
        if count == 0:
            if page not in self._cached:
                raise ValueError(f"page {page} is free and cannot be shared")
            self._pick_up(page)
        self._counts[page] = count + 1
        self.shared += count == 1
        self.states[page] = SHARED if count else USED

    def release(self, pages: Iterable[int]) -> None:
        """One table less holds each of these pages, of which a cached one is newer than those before it.

        Raises ValueError where nobody holds one.
        """
        for page in pages:
            count = self._counts[page] - 1
            if count < 0:
                raise ValueError(f"page {page} is released by somebody who does not hold it")
            self._counts[page] = count
            if count == 0:
                self._lay_down(page)
            elif count == 1:
                self.shared -= 1
                self.states[page] = USED

    def keep(self, page: int) -> None:
        """The content of this page, which is held, stays when it is released."""
        self._kept[page] = 1

    def is_kept(self, page: int) -> bool:
        return bool(self._kept[page])

    def forget(self, page: int) -> None:
        """The content of this page is of no use any more; cached, it becomes free."""
        self._kept[page] = 0
        if page in self._cached:
            self._pick_up(page)
            self._lay_down(page)

    def touch(self, page: int) -> None:
        """If this page is cached, it is the newest now."""
        if page in self._cached:
            self._cached.move_to_end(page)

    def evict(self, count: int) -> list[int]:
        """Makes the `count` oldest evictable pages free, or all where they are fewer."""
        evicted = list(islice((page for page in self._cached if page not in self._pinned), count))
        for page in evicted:
            self.forget(page)
        return evicted

    def cached_pages(self, newest_first: bool = False) -> Iterator[int]:
        """The cached pages, the one to be evicted next first, or last. Changes end the walk with RuntimeError."""
        return reversed(self._cached) if newest_first else iter(self._cached)

    def pin(self, page: int) -> None:
        """A transfer needs this page, which is held or cached and not pinned, as it is."""
        if page in self._pinned or (self._counts[page] == 0 and page not in self._cached):
            raise ValueError(f"page {page} is free or pinned, and cannot be pinned")
        self._pinned.add(page)
        self._pinned_cached += page in self._cached

    def is_pinned(self, page: int) -> bool:
        return page in self._pinned

    def unpin(self, page: int) -> None:
        """The transfer is over."""
        self._pinned.remove(page)
        if page in self._cached:
            self._pinned_cached -= 1
        elif self._counts[page] == 0:
            self._lay_down(page)

    def _pick_up(self, page: int) -> None:
        """A cached page is not cached any more."""
        del self._cached[page]
        self._pinned_cached -= page in self._pinned

    def _lay_down(self, page: int) -> None:
        """Nobody's table holds this page."""
        if self._kept[page]:
            self._cached[page] = None
            self._pinned_cached += page in self._pinned
            self.states[page] = CACHED
        elif page in self._pinned:
            self.states[page] = USED
        else:
            self._free.append(page)
            self.states[page] = FREE

    def check_integrity(self) -> None:
        """Raises AssertionError unless each page is in exactly one place, and what is counted is so."""
        unheld = {page for page in range(self.total) if self._counts[page] == 0}
        unheld -= {page for page in self._pinned if page not in self._cached}
        assert min(self._counts) >= 0, "a page is held a negative number of times"
        assert sorted((*self._free, *self._cached)) == sorted(unheld), "the free list and the reference counts disagree"
        assert all(self._kept[page] for page in self._cached), "a page is cached that nobody wanted kept"
        assert not any(self._kept[page] for page in self._free), "a free page is said to hold something"
        assert self._pinned_cached == len(self._cached.keys() & self._pinned), "pinned pages are counted wrongly"
        assert self.shared == sum(count > 1 for count in self._counts), "shared pages are counted wrongly"
        states = {FREE: set(self._free), CACHED: set(self._cached)}
        states[SHARED] = {page for page in range(self.total) if self._counts[page] > 1}
        for page, state in enumerate(self.states):
            shown = next((one for one, pages in states.items() if page in pages), USED)
            assert state == shown, f"page {page} is shown in the wrong state"
