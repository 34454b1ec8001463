"""LostKeys: keys of pages that are gone from memory and never were on disk, so that a return counts as a second use.

Without it, chats that come round in turn, more of them than memory holds, would each be computed anew every time and
never be written: the pages would always be gone before they were wanted twice. (The idea of ghost entries is that of
Megiddo and Modha, "ARC", 2003.)
"""

from __future__ import annotations

from collections import OrderedDict

from kvcache.transfer import PageKey


class LostKeys:
    """At most `most` keys, the ones lost longest ago forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: OrderedDict[PageKey, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: PageKey) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)

    def take(self, key: PageKey) -> bool:
        """Whether this key was lost; it has come back, and is lost no more."""
        return self._keys.pop(key, self) is not self
