"""The longest prefix that can be served from cached pages, as a pure function. Sharing the pages is CacheManager's."""

from __future__ import annotations

from collections.abc import Sequence as Many
from itertools import takewhile
from typing import Protocol

from kvcache.layout import CacheGroup, oldest_seen
from kvcache.transfer import PageKey


class KeySet(Protocol):
    """Where keys are looked up."""

    def __contains__(self, key: PageKey, /) -> bool: ...


class Either:
    """The keys of two sets."""

    def __init__(self, first: KeySet, second: KeySet) -> None:
        self._first, self._second = first, second

    def __contains__(self, key: PageKey) -> bool:
        return key in self._first or key in self._second


def first_page_seen(group: CacheGroup, position: int) -> int:
    """The first page of the group that the token at `position` can see."""
    return oldest_seen(position, group.window, group.chunked) // group.page_tokens


def longest_prefix(groups: tuple[CacheGroup, ...], keys: Many[Many[PageKey]], limit: int, held: KeySet) -> int:
    """The most tokens, at most `limit`, of which every group has what the token after them can still see.

    keys: of each group's pages, from the first on. The result is a multiple of every group's page, so that a sequence
    which goes on from there writes only pages of its own. Each group has the last page at least, even where a chunk
    ends there and nothing of it is seen: so a hit is always something that was computed.
    """
    span = max(group.page_tokens for group in groups)
    length = limit // span * span
    for group, own in zip(groups, keys, strict=True):
        if group.window is None:
            pages = own[: length // group.page_tokens]
            run = sum(1 for _ in takewhile(held.__contains__, pages))
            length = run * group.page_tokens // span * span
    for _ in range(length // span):
        if all(_sees_all(group, own, length, held) for group, own in zip(groups, keys, strict=True) if group.window):
            return length
        length -= span
    return 0


def _sees_all(group: CacheGroup, keys: Many[PageKey], length: int, held: KeySet) -> bool:
    """Whether all pages that the token at `length` sees are held, and the one before it."""
    last = length // group.page_tokens - 1
    first = min(first_page_seen(group, length), last)
    return all(keys[page] in held for page in range(last, first - 1, -1))
