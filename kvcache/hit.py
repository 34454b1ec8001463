"""Hit: the longest prefix of a sequence that is kept somewhere, as plain data. Finding it is CacheManager's."""

from __future__ import annotations

from dataclasses import dataclass


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
