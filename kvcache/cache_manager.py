"""CacheManager: gives sequences pages in all cache groups, takes them back, and lets equal prefixes share them.

Who gets pages is not its choice. Which prefix is kept is for `hit_finder` to say; what evicted pages become, and where
they come back from, is `lower_tiers`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from itertools import islice

from kvcache.cache_counts import CacheCounts, describe
from kvcache.hand_over import HandOvers
from kvcache.hit import Hit
from kvcache.hit_finder import HitFinder
from kvcache.layout import CacheLayout
from kvcache.lower_tiers import BUSY_STORES, IDLE_STORES, LOOKED_AT, SECOND_USE, LowerTiers
from kvcache.page_key import KeyChain, root_of
from kvcache.page_pool import PagePool
from kvcache.page_table import PageTable
from kvcache.prefix_index import IndexedPage, PrefixIndex
from kvcache.sequence_pages import SequencePages
from kvcache.statistics import CacheMap, CacheStatistics
from kvcache.transfer import DiskIndex, Place, Tier, Transfer, TransferDone

MAP_CELLS = 1024

# The tokens at positions from the first number to before the second.
TokenRange = Callable[[int, int], Many[int]]


class CacheManager:
    """One pool over all groups of a layout. A sequence's handle is its SequencePages.

    Only a call here changes tables and pool, so the page ids of a step stay valid until the caller's next call.
    """

    def __init__(
        self,
        layout: CacheLayout,
        pages: int,
        *,
        namespace: bytes = b"",
        host_pages: int = 0,
        disk: DiskIndex | None = None,
        apart: bool = False,
    ) -> None:
        """namespace: what all pages' bytes depend on beside tokens: weights, types, formats, kernels' order, RoPE.

        host_pages: slots of the host tier. disk: the disk tier, if there is one. apart: whether the disk is where pages
        are handed over, so that nothing else goes there, and whatever is there is fetched.
        """
        self.layout = layout
        self._namespace = namespace
        self._pool = PagePool(pages)
        self._index = PrefixIndex()
        self._shape = self._empty_tables()
        self.span = max(group.page_tokens for group in layout.groups)
        self._lower = LowerTiers(host_pages, disk, pages, keeps_on_disk=not apart)
        self._hand_overs = HandOvers(self._pool, self._index, self._lower)
        self._fetches: dict[int, SequencePages] = {}
        self._counts = CacheCounts()
        self._hits = HitFinder(layout, self._pool, self._index, self._lower, self._counts, fetch_always=apart)

    def _empty_tables(self) -> tuple[PageTable, ...]:
        return tuple(PageTable(group.page_tokens, group.window, group.chunked) for group in self.layout.groups)

    def open(self, salt: bytes = b"", kind: bytes = b"", owner: bytes = b"") -> SequencePages:
        """No pages yet, for a new sequence. Sequences of unequal salt or kind never share pages.

        kind: what this sequence's pages depend on beside its tokens. owner: as in Transfer.
        """
        chain = KeyChain(root_of(self._namespace, salt, kind), tuple(one.page_tokens for one in self.layout.groups))
        return SequencePages(self._empty_tables(), chain, owner)

    @property
    def available_pages(self) -> int:
        """Pages that `grow` can give: free ones, and cached ones, whose content it would lose."""
        return self._pool.free + self._pool.evictable

    @property
    def pages_in_transfer(self) -> int:
        """Device pages that transfers hold, and give back when they are over."""
        return self._pool.pinned

    def most_pages(self, length: int, step_tokens: int) -> int:
        """Most pages held at once by a sequence that grows to `length`, at most `step_tokens` positions a step."""
        return sum(table.most_pages(length, step_tokens) for table in self._shape)

    def pages_needed(self, pages: SequencePages, length: int) -> int:
        """Pages that `grow` to this length would take from the pool."""
        return sum(table.missing(length) for table in pages.tables)

    def look_up(self, pages: SequencePages, length: int, tokens: TokenRange, *, fetch: bool = True) -> Hit:
        """The longest prefix of a sequence without pages that is kept; below `length`, the count of its tokens.

        fetch: whether lower tiers are asked as well, where copying is cheaper than computing.
        """
        self._extend(pages, length, tokens)
        return self._hits.find(pages.chain.keys, length, fetch=fetch)

    def adopt(self, pages: SequencePages, hit: Hit) -> bool:
        """Gives a sequence, which has no pages, those of a hit, and orders what must be fetched.

        False, and nothing changes, where there is no place for that. Until `pages.fetching` is 0 no batch may name the
        sequence; if `fetch_failed` is set then, its pages must be released.
        """
        shared = [page for own in hit.pages for page in own if page is not None]
        # Sharing takes cached pages out of what is available.
        if hit.missing + sum(self._pool.count(page) == 0 for page in shared) > self.available_pages:
            return False
        for page in shared:
            self._pool.share(page)
            entry = self._index.of_page(page)
            if entry is not None:
                entry.uses += 1
        fetched = self._fetch(pages, hit)
        for group, (table, first, own) in enumerate(zip(pages.tables, hit.first, hit.pages, strict=True)):
            table.first = first
            table.ids.extend(fetched[group, place] if page is None else page for place, page in enumerate(own))
            pages.offered[group] = first + len(own)
        self._counts.declined_fetches += hit.declined
        return True

    def _fetch(self, pages: SequencePages, hit: Hit) -> dict[tuple[int, int], int]:
        """Device pages for all that is missing, by group and place, with orders to fill them."""
        missing = hit.missing_keys(pages.chain.keys)
        # Before places are made: making them may evict from the host.
        # Tails first, so that on disk, too, the beginning of a chain is the newest.
        sources = [self._lower.hold(key) for _, _, key in reversed(missing)][::-1]
        taken = self._take(len(missing))
        if taken is None:
            raise RuntimeError("pages were counted as available and are not")
        for (group, _, key), source, page in zip(missing, sources, taken, strict=True):
            self._pool.pin(page)
            self._fetches[self._lower.fetch(key, source, page, group, pages.owner)] = pages
        pages.fetching, pages.fetch_failed = len(missing), False
        return {(group, place): page for (group, place, _), page in zip(missing, taken, strict=True)}

    def finish(self, done: TransferDone) -> None:
        """Takes in the end of a transfer. Raises KeyError for one that does not run."""
        transfer = self._lower.finish(done)
        if transfer.target.tier is Tier.DEVICE:
            self._arrive(transfer, done.succeeded)
        elif transfer.source.tier is Tier.DEVICE and transfer.target.tier is Tier.DISK:
            self._pool.unpin(transfer.source.index)
            self._hand_overs.stored(transfer.key)

    def hand_over(self, pages: SequencePages) -> int:
        """Has the cached pages of a sequence, which still holds them, stored for another engine: the order's number.

        `handed_over` says when the disk has them all, or those that it takes.
        """
        keys = pages.chain.keys
        count = max(map(len, keys))
        # Beginnings first, in all groups: what came too late is then missing at the end.
        return self._hand_overs.begin(own[place] for place in range(count) for own in keys if place < len(own))

    def handed_over(self) -> list[int]:
        """The orders of `hand_over` that are done, since the last call."""
        return self._hand_overs.take_done()

    @property
    def handing_over(self) -> bool:
        """Whether an order of `hand_over` is not done."""
        return self._hand_overs.running

    def _arrive(self, transfer: Transfer, succeeded: bool) -> None:
        page, pages = transfer.target.index, self._fetches.pop(transfer.number)
        pages.fetching -= 1
        if succeeded:
            # Somebody has wanted it again, or it would not have been fetched.
            self._index_page(IndexedPage(transfer.key, page, transfer.group, transfer.owner, uses=SECOND_USE))
        else:
            pages.fetch_failed = True
        self._pool.unpin(page)

    def fail_transfers(self) -> None:
        """Whoever makes transfers has begun anew: none that is not over will be."""
        self._lower.book.take()
        for transfer in tuple(self._lower.book):
            self.finish(TransferDone(transfer.number, False, 0, 0.0))

    def lose_unheld(self, handles: Iterable[SequencePages]) -> None:
        """All pages' content is gone, in memory and on the host, while no transfer runs.

        These sequences keep their pages, will compute them again, and offer them anew. What the disk is thought to have
        stays: a fetch that finds nothing is a miss.
        """
        for page in self._index.pages():
            self._index.drop(page)
            self._pool.forget(page)
        self._lower.lose_host()
        for pages in handles:
            pages.offered = [0] * len(pages.tables)

    def take_transfers(self) -> tuple[Transfer, ...]:
        """The orders since the last call, for the batch that is about to run."""
        self._hand_overs.order()
        self._lower.store_ahead()
        if self._lower.host.total == 0:
            self._store_ahead()
        return self._lower.book.take()

    def _store_ahead(self) -> None:
        """Without a host tier, begins to store what the device will evict next."""
        if not self._lower.keeps_on_disk or self._pool.free > self._pool.total // 16:
            return
        room = min(BUSY_STORES, self._pool.total // 16) - self._lower.book.running_to(Tier.DISK)
        oldest = self._entries(islice(self._pool.cached_pages(), LOOKED_AT))
        self._store([entry for entry in oldest if entry.uses >= SECOND_USE], room)

    def store_idle(self) -> None:
        """While nothing runs: orders that the disk gets what it does not have, the newest first, a bounded number."""
        if not self._lower.keeps_on_disk:
            return
        newest = self._entries(self._pool.cached_pages(newest_first=True))
        room = IDLE_STORES - self._lower.book.running_to(Tier.DISK)
        chosen = list(islice((entry for entry in newest if self._lower.may_store(entry)), max(0, room)))
        self._store(chosen[::-1], room)
        self._lower.store_idle()

    def _entries(self, cached: Iterable[int]) -> Iterator[IndexedPage]:
        return (entry for entry in map(self._index.of_page, cached) if entry is not None)

    def _store(self, entries: list[IndexedPage], room: int) -> None:
        for entry in entries:
            if room > 0 and self._lower.may_store(entry):
                self._pool.pin(entry.page)
                self._lower.store_from_device(entry)
                room -= 1

    @property
    def transfers_running(self) -> int:
        """Ordered transfers that are not over."""
        return self._lower.book.running

    def count_admission(self, length: int, hit: Hit) -> None:
        """A sequence of so many tokens begins to run after this hit, all of which is there now."""
        self._counts.admit(length, hit)

    def observe_compute(self, tokens: int, seconds: float) -> None:
        """So many prompt tokens were computed in this time."""
        self._counts.observe_compute(tokens, seconds)

    def offer(self, pages: SequencePages, length: int, tokens: TokenRange) -> None:
        """Lets others share the full pages below `length`, whose positions are computed and accepted."""
        if length - pages.chain.length >= pages.chain.unit:
            self._extend(pages, length, tokens)
        for group, table in enumerate(pages.tables):
            full = length // table.page_tokens
            for number in range(pages.offered[group], full):
                key = pages.chain.keys[group][number]
                self._index_page(
                    IndexedPage(key, table.page(number), group, pages.owner, uses=self._lower.uses_of(key))
                )
            pages.offered[group] = max(full, pages.offered[group])

    def _index_page(self, entry: IndexedPage) -> None:
        if self._index.add(entry):
            self._pool.keep(entry.page)

    def _extend(self, pages: SequencePages, length: int, tokens: TokenRange) -> None:
        """Makes the chain cover all whole units below `length`."""
        chain = pages.chain
        whole = length - length % chain.unit
        if whole > chain.length:
            chain.extend(tokens(chain.length, whole))

    def disown(self, pages: SequencePages) -> None:
        """Whatever is cached of this sequence's tokens is wrong: nobody shall share it from now on."""
        for keys in pages.chain.keys:
            for key in keys:
                entry = self._index.find(key)
                if entry is not None:
                    self._index.drop(entry.page)
                    self._pool.forget(entry.page)
                self._lower.forget(key)

    def grow(self, pages: SequencePages, length: int) -> bool:
        """Gives every position below `length` a page in all groups, or changes nothing and says False."""
        missing = [table.missing(length) for table in pages.tables]
        total = sum(missing)
        if total == 0:
            return True
        taken = self._take(total)
        if taken is None:
            return False
        begin = 0
        for table, count in zip(pages.tables, missing, strict=True):
            table.ids.extend(taken[begin : begin + count])
            begin += count
        return True

    def _take(self, count: int) -> list[int] | None:
        """Pages from the pool, cached ones where free ones are too few."""
        if count > self.available_pages:
            return None
        for page in self._pool.evict(max(0, count - self._pool.free)):
            self._counts.evictions += 1
            self._lower.offload(self._index.drop(page))
        return self._pool.take(count)

    def slide(self, pages: SequencePages, position: int) -> None:
        """Lets go of the pages that no token from `position` on can see."""
        for table in pages.tables:
            if table.window is not None:
                self._pool.release(reversed(table.slide(position)))

    def truncate(self, pages: SequencePages, length: int) -> None:
        """Frees the pages past the positions below `length`.

        Raises ValueError, and changes nothing, where a window has left behind what the token at `length` must see, or
        where the page that would be written next may be shared.
        """
        for table, offered in zip(pages.tables, pages.offered, strict=True):
            if not table.can_continue_at(length):
                raise ValueError(f"a window has left behind positions that the token at {length} must see")
            if length < offered * table.page_tokens:
                raise ValueError(f"the positions from {length} on are accepted, and their pages may be shared")
        for table in pages.tables:
            self._pool.release(reversed(table.truncate(length)))

    def release(self, pages: SequencePages) -> None:
        """Takes all pages of a sequence back; indexed ones stay cached, later positions to be evicted first."""
        for group, place in pages.newest_first():
            table = pages.tables[group]
            self._pool.release((table.ids[place],))
            number = table.first + place
            if number < pages.offered[group]:
                self._touch(pages.chain.keys[group][number])
        for table in pages.tables:
            table.clear()
        pages.offered = [0] * len(pages.tables)

    def _touch(self, key: bytes) -> None:
        """What continues a page has just become the newest, so it becomes newer, whosever page it is."""
        entry = self._index.find(key)
        if entry is not None:
            self._pool.touch(entry.page)

    def statistics(self) -> CacheStatistics:
        return describe(self._pool, self._lower, self._counts, self.layout.page_bytes)

    def map(self) -> CacheMap:
        """What the pages hold now; linear in the pool, so for a few times a second."""
        states = self._pool.states
        width = -(-len(states) // MAP_CELLS)
        return CacheMap(width, bytes(max(states[begin : begin + width]) for begin in range(0, len(states), width)))

    def check_integrity(self, handles: Iterable[SequencePages]) -> None:
        """Raises AssertionError unless exactly the pages in these handles' tables are held, as often as they occur."""
        self._pool.check_integrity()
        self._index.check_integrity()
        held = Counter(page for pages in handles for table in pages.tables for page in table.ids)
        for page in range(self._pool.total):
            assert self._pool.count(page) == held[page], f"page {page} is lost or shared by mistake"
        self._lower.check_integrity()
        pinned = sorted(place.index for one in self._lower.book for place in _held_by(one))
        assert pinned == self._pool.pinned_pages(), "pages are pinned for nobody"
        fetches = {one.number for one in self._lower.book if one.target.tier is Tier.DEVICE}
        assert fetches == self._fetches.keys(), "a fetch is nobody's"
        kept = sum(self._pool.is_kept(page) for page in range(self._pool.total))
        assert kept == len(self._index), "pages are kept that no key leads to"


def _held_by(transfer: Transfer) -> list[Place]:
    """The device page that stays as it is until this transfer is over; what is offloaded to the host does not."""
    if transfer.target.tier is Tier.HOST:
        return []
    return [place for place in (transfer.source, transfer.target) if place.tier is Tier.DEVICE]
