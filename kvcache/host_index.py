"""HostIndex: which slot of the host tier holds the content of which key, and which goes first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from kvcache.transfer import PageKey


@dataclass(slots=True)
class HostPage:
    """A page in a slot. `uses` and `stored` as of an IndexedPage.

    `offload` is the number of the transfer that brings it, until that has succeeded: nothing may read it before.
    """

    key: PageKey
    slot: int
    group: int
    owner: bytes
    uses: int
    stored: bool
    offload: int | None = None


class HostIndex:
    """Slots 0 to `total - 1`, each free or with a page. A slot that a transfer reads is pinned, and stays as it is."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._pages: dict[PageKey, HostPage] = {}
        self._order: OrderedDict[PageKey, None] = OrderedDict()  # what may be evicted, oldest first
        self._pins: Counter[int] = Counter()

    def __contains__(self, key: PageKey) -> bool:
        return key in self._pages

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def find(self, key: PageKey) -> HostPage | None:
        return self._pages.get(key)

    def add(self, key: PageKey, group: int, owner: bytes, uses: int, stored: bool) -> HostPage | None:
        """Gives a page that is not here a free slot, as the newest; None where none is free."""
        if not self._free:
            return None
        page = self._pages[key] = HostPage(key, self._free.pop(), group, owner, uses, stored)
        self._order[key] = None
        return page

    def arrived(self, key: PageKey) -> bool:
        """Whether a page is here, all of it."""
        page = self._pages.get(key)
        return page is not None and page.offload is None

    def touch(self, key: PageKey, uses: int) -> None:
        """The page was wanted again, `uses` times by now: it is the newest."""
        page = self._pages[key]
        page.uses = max(page.uses, uses)
        if key in self._order:
            self._order.move_to_end(key)

    def drop(self, key: PageKey) -> None:
        """Lets go of a page; its slot is free when no transfer reads it any more."""
        page = self._pages.pop(key)
        self._order.pop(key, None)
        if page.slot not in self._pins:
            self._free.append(page.slot)

    def pin(self, page: HostPage) -> None:
        """A transfer begins to read the page's slot."""
        self._order.pop(page.key, None)
        self._pins[page.slot] += 1

    def unpin(self, key: PageKey, slot: int, *, newest: bool) -> None:
        """The transfer is over; without others, the page is the newest again, or the first to be evicted."""
        self._pins[slot] -= 1
        if self._pins[slot]:
            return
        del self._pins[slot]
        page = self._pages.get(key)
        if page is None or page.slot != slot:
            self._free.append(slot)
            return
        self._order[key] = None
        self._order.move_to_end(key, last=newest)

    def pins(self) -> int:
        """How many transfers read slots."""
        return self._pins.total()

    def in_order(self, newest_first: bool = False) -> Iterator[HostPage]:
        """What may be evicted, the next one first, or last. Changes end the walk with RuntimeError."""
        return (self._pages[key] for key in (reversed(self._order) if newest_first else self._order))

    def check_integrity(self) -> None:
        """Raises AssertionError unless each slot is free, holds one page, or is still read."""
        slots = {page.slot for page in self._pages.values()}
        assert len(slots) == len(self._pages), "two pages share a slot"
        assert sorted((*self._free, *(slots | set(self._pins)))) == list(range(self.total)), "a slot is lost"
        for key, page in self._pages.items():
            assert page.key == key, "a page lies under another key"
            assert (key in self._order) is (page.slot not in self._pins), "a pinned slot may be evicted"
        assert self._order.keys() <= self._pages.keys(), "something may be evicted that is not here"
