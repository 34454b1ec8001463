"""CacheManager: gives sequences pages in all cache groups and takes them back. Who gets them is not its choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvcache.layout import CacheLayout
from kvcache.page_pool import PagePool
from kvcache.page_table import PageTable
from kvcache.statistics import CacheStatistics


class CacheManager:
    """One pool over all groups of a layout. A sequence's handle is its tables, one per group, in the layout's order.

    Only a call here changes tables and pool, so the page ids of a step stay valid until the caller's next call.
    """

    def __init__(self, layout: CacheLayout, pages: int) -> None:
        self.layout = layout
        self._pool = PagePool(pages)

    def open(self) -> tuple[PageTable, ...]:
        """Empty tables for a new sequence."""
        return tuple(PageTable(group.page_tokens, group.window, group.chunked) for group in self.layout.groups)

    @property
    def free_pages(self) -> int:
        return self._pool.free

    def pages_needed(self, tables: tuple[PageTable, ...], length: int) -> int:
        """Pages that `grow` to this length would take from the pool."""
        return sum(table.missing(length) for table in tables)

    def most_pages(self, length: int, step_tokens: int) -> int:
        """Most pages held at once by a sequence that grows to `length`, at most `step_tokens` positions a step."""
        return sum(table.most_pages(length, step_tokens) for table in self.open())

    def grow(self, tables: tuple[PageTable, ...], length: int) -> bool:
        """Gives every position below `length` a page in all groups, or changes nothing and says False."""
        missing = [table.missing(length) for table in tables]
        total = sum(missing)
        if total == 0:
            return True
        taken = self._pool.take(total)
        if taken is None:
            return False
        begin = 0
        for table, count in zip(tables, missing, strict=True):
            table.ids.extend(taken[begin : begin + count])
            begin += count
        return True

    def slide(self, tables: tuple[PageTable, ...], position: int) -> None:
        """Frees the pages that no token from `position` on can see."""
        for table in tables:
            if table.window is not None:
                self._pool.release(table.slide(position))

    def truncate(self, tables: tuple[PageTable, ...], length: int) -> None:
        """Frees the pages past the positions below `length`.

        Raises ValueError, and changes nothing, where a window has left behind what the token at `length` must see.
        """
        if not all(table.can_continue_at(length) for table in tables):
            raise ValueError(f"a window has left behind positions that the token at {length} must see")
        for table in tables:
            self._pool.release(table.truncate(length))

    def release(self, tables: tuple[PageTable, ...]) -> None:
        """Frees all pages of a sequence; the tables are as new."""
        for table in tables:
            self._pool.release(table.clear())

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            pages_total=self._pool.total,
            pages_used=self._pool.used,
            pages_free=self._pool.free,
            page_bytes=self.layout.page_bytes,
        )

    def check_integrity(self, handles: Iterable[tuple[PageTable, ...]]) -> None:
        """Raises AssertionError unless exactly the pages in these handles' tables are held, as often as they occur."""
        self._pool.check_integrity()
        held = Counter(page for tables in handles for table in tables for page in table.ids)
        for page in range(self._pool.total):
            assert self._pool.count(page) == held[page], f"page {page} is lost or shared by mistake"
