"""Keys of cached pages: a chain of hashes over a sequence's tokens. Which page has a key is PrefixIndex's to know."""

from __future__ import annotations

import struct
from collections.abc import Sequence as Many
from hashlib import sha256

from kvcache.transfer import PageKey


def root_of(*parts: bytes) -> bytes:
    """The beginning of a chain: a hash of all that pages depend on beside their tokens, in this order."""
    digest = sha256()
    for part in parts:
        # With its length in front, no two lists of parts run together into the same bytes.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class KeyChain:
    """The keys of one sequence's pages in all groups, appended to as its tokens become known.

        tokens   [ unit ][ unit ][ unit ][ unit ]        a unit is the smallest page of any group
        links  root -> l0 ---> l1 ---> l2 ---> l3        each a hash of the link before it and the unit's tokens
        keys     k0      k1      k2      k3              of a group with pages of one unit: hash of its number and link
                         k0              k1              of one with pages of two units

    `links[i]` and `keys[group][page]` may be read by anybody.
    """

    __slots__ = ("_ratios", "_root", "keys", "links", "unit")

    def __init__(self, root: bytes, page_tokens: tuple[int, ...]) -> None:
        """page_tokens: of each group, powers of two."""
        self.unit = min(page_tokens)
        self.links: list[bytes] = []
        self.keys: tuple[list[PageKey], ...] = tuple([] for _ in page_tokens)
        self._root = root
        self._ratios = tuple(
            (one // self.unit, group.to_bytes(2, "little"), keys)
            for group, (one, keys) in enumerate(zip(page_tokens, self.keys, strict=True))
        )

    @property
    def length(self) -> int:
        """Positions that the chain covers, a multiple of the unit."""
        return len(self.links) * self.unit

    def extend(self, tokens: Many[int]) -> None:
        """Goes on by these tokens, which begin at `length` and make whole units."""
        data = memoryview(struct.pack(f"<{len(tokens)}Q", *tokens))
        step = 8 * self.unit
        link = self.links[-1] if self.links else self._root
        for begin in range(0, len(data), step):
            link = sha256(link + data[begin : begin + step]).digest()
            self.links.append(link)
            for ratio, number, keys in self._ratios:
                if len(self.links) % ratio == 0:
                    keys.append(sha256(number + link).digest())
