"""Hit: the longest prefix of a sequence that is kept somewhere, as plain data. Finding it is HitFinder's."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from kvcache.transfer import PageKey


@dataclass(frozen=True, slots=True)
class Hit:
    """A prefix that need not be computed, valid until the cache manager's next change.

    Attributes:
        tokens: its length.
        first: per group, the number of the first page that the token after the prefix sees.
        pages: per group, the device pages from there on; None for those that lower tiers hold.
        missing: how many are None; missing_on_disk: how many of these the host does not hold.
        held: how many pages others hold already, in groups that keep every position.
        tokens_on_device: the longest prefix without fetching.
        arriving: whether a page of it is being fetched for somebody else.
        declined: whether lower tiers hold more, which is cheaper to compute again.
    """

    tokens: int
    first: tuple[int, ...]
    pages: tuple[tuple[int | None, ...], ...]
    missing: int
    held: int
    tokens_on_device: int
    missing_on_disk: int = 0
    arriving: bool = False
    declined: bool = False

    def missing_keys(self, keys: Many[Many[PageKey]]) -> list[tuple[int, int, PageKey]]:
        """(group, place in `pages`, key) of what the device does not hold.

        keys: of each group's pages, from the sequence's first on.
        """
        if not self.missing:
            return []
        return [
            (group, place, keys[group][self.first[group] + place])
            for group, own in enumerate(self.pages)
            for place, page in enumerate(own)
            if page is None
        ]
