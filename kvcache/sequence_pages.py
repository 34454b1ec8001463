"""SequencePages: what the cache keeps of one sequence. CacheManager makes and changes it; sequences carry it."""

from __future__ import annotations

from collections.abc import Iterator

from kvcache.page_key import KeyChain
from kvcache.page_table import PageTable


class SequencePages:
    """A sequence's tables, one per cache group, in the layout's order, and the keys of its pages.

    `offered` counts, per group, the pages from the first position on that have been offered to the index (or came from
    it): they are full, their tokens are accepted, and nobody writes them again. `owner` is as in Transfer.
    `fetching` counts the pages that are still on their way from lower tiers; `fetch_failed`: one did not arrive.
    """

    __slots__ = ("chain", "fetch_failed", "fetching", "offered", "owner", "tables")

    def __init__(self, tables: tuple[PageTable, ...], chain: KeyChain, owner: bytes) -> None:
        self.tables = tables
        self.chain = chain
        self.owner = owner
        self.fetching = 0
        self.fetch_failed = False
        self.offered = [0] * len(tables)

    def newest_first(self) -> Iterator[tuple[int, int]]:
        """(group, place in its table's ids) of all pages, those of later positions first, over all groups."""
        places = [
            ((table.first + place + 1) * table.page_tokens, group, place)
            for group, table in enumerate(self.tables)
            for place in range(len(table.ids))
        ]
        places.sort(reverse=True)
        return ((group, place) for _, group, place in places)
