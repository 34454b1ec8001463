"""CacheManager: gives sequences pages in all cache groups, takes them back, and lets equal prefixes share them.

Who gets pages is not its choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from kvcache.layout import CacheLayout
from kvcache.page_key import KeyChain, root_of
from kvcache.page_pool import PagePool
from kvcache.page_table import PageTable
from kvcache.prefix_hit import first_page_seen, longest_prefix
from kvcache.prefix_index import IndexedPage, PrefixIndex
from kvcache.sequence_pages import SequencePages
from kvcache.statistics import CacheMap, CacheStatistics

MAP_CELLS = 1024

# The tokens at positions from the first number to before the second.
TokenRange = Callable[[int, int], Many[int]]


@dataclass(frozen=True, slots=True)
class Hit:
    """A prefix of `tokens` positions that cached pages hold, valid until the cache manager's next change.

    `pages` has, per group, those that the next token can still see, the first of which is page `first` of the sequence.
    `held` counts those that others hold already, in groups that keep every position.
    """

    tokens: int
    first: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    held: int


class CacheManager:
    """One pool over all groups of a layout. A sequence's handle is its SequencePages.

    Only a call here changes tables and pool, so the page ids of a step stay valid until the caller's next call.
    """

    def __init__(self, layout: CacheLayout, pages: int, *, namespace: bytes = b"") -> None:
        """namespace: what all pages' bytes depend on beside tokens: weights, types, formats, kernels' order, RoPE."""
        self.layout = layout
        self._namespace = namespace
        self._pool = PagePool(pages)
        self._index = PrefixIndex()
        self._shape = self._empty_tables()
        self.span = max(group.page_tokens for group in layout.groups)
        self._lookup_tokens = self._hit_tokens = self._evictions = 0

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
        return self._pool.free + self._pool.cached

    def most_pages(self, length: int, step_tokens: int) -> int:
        """Most pages held at once by a sequence that grows to `length`, at most `step_tokens` positions a step."""
        return sum(table.most_pages(length, step_tokens) for table in self._shape)

    def pages_needed(self, pages: SequencePages, length: int) -> int:
        """Pages that `grow` to this length would take from the pool."""
        return sum(table.missing(length) for table in pages.tables)

    def look_up(self, pages: SequencePages, length: int, tokens: TokenRange) -> Hit:
        """The longest prefix of a sequence without pages that others have left; below `length`, its tokens' count."""
        self._extend(pages, length, tokens)
        groups, keys = self.layout.groups, pages.chain.keys
        found = longest_prefix(groups, keys, length - 1, self._index)
        first = tuple(first_page_seen(group, found) for group in groups)
        hit = tuple(
            tuple(self._page_of(key) for key in own[begin : found // group.page_tokens])
            for group, own, begin in zip(groups, keys, first, strict=True)
        )
        held = sum(
            self._pool.count(page) > 0
            for group, own in zip(groups, hit, strict=True)
            if group.window is None
            for page in own
        )
        return Hit(found, first, hit, held)

    def _page_of(self, key: bytes) -> int:
        entry = self._index.find(key)
        if entry is None:
            raise KeyError("a key that was just found is not indexed")
        return entry.page

    def adopt(self, pages: SequencePages, hit: Hit, length: int) -> None:
        """Gives a sequence of `length` tokens, which has no pages, those of a hit."""
        self._lookup_tokens += length
        self._hit_tokens += hit.tokens
        for group, (table, first, ids) in enumerate(zip(pages.tables, hit.first, hit.pages, strict=True)):
            table.first = first
            table.ids.extend(ids)
            pages.offered[group] = first + len(ids)
            for page in ids:
                self._pool.share(page)
                entry = self._index.of_page(page)
                if entry is not None:
                    entry.uses += 1

    def offer(self, pages: SequencePages, length: int, tokens: TokenRange) -> None:
        """Lets others share the full pages below `length`, whose positions are computed and accepted."""
        if length - pages.chain.length >= pages.chain.unit:
            self._extend(pages, length, tokens)
        for group, table in enumerate(pages.tables):
            full = length // table.page_tokens
            for number in range(pages.offered[group], full):
                self._index_page(IndexedPage(pages.chain.keys[group][number], table.page(number), group, pages.owner))
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
            self._evictions += 1
            self._index.drop(page)
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
        return CacheStatistics(
            pages_total=self._pool.total,
            pages_used=self._pool.used,
            pages_free=self._pool.free,
            pages_shared=self._pool.shared,
            pages_cached=self._pool.cached,
            page_bytes=self.layout.page_bytes,
            lookup_tokens=self._lookup_tokens,
            hit_tokens=self._hit_tokens,
            evictions=self._evictions,
        )

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
        kept = sum(self._pool.is_kept(page) for page in range(self._pool.total))
        assert kept == len(self._index), "pages are kept that no key leads to"
