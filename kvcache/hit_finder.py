"""HitFinder: which prefix of a sequence is kept, and whether fetching it is worth it. CacheManager takes its pages."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace

from kvcache.cache_counts import CacheCounts
from kvcache.fetch_choice import Copy, worth_fetching
from kvcache.hit import Hit
from kvcache.layout import CacheLayout
from kvcache.lower_tiers import LowerTiers
from kvcache.page_pool import PagePool
from kvcache.prefix_hit import Either, first_page_seen, longest_prefix
from kvcache.prefix_index import PrefixIndex
from kvcache.transfer import PageKey, Tier

# Of so many fetches that were dearer than computing, one is made nevertheless: rates change.
DECLINES_TO_TRY = 16


class HitFinder:
    """Reads what one cache manager owns, and changes nothing.

    fetch_always: whether whatever a lower tier has is fetched, at any price.
    """

    def __init__(
        self,
        layout: CacheLayout,
        pool: PagePool,
        index: PrefixIndex,
        lower: LowerTiers,
        counts: CacheCounts,
        *,
        fetch_always: bool,
    ) -> None:
        self._layout = layout
        self._pool, self._index, self._lower, self._counts = pool, index, lower, counts
        self._fetch_always = fetch_always

    def find(self, keys: Many[Many[PageKey]], length: int, *, fetch: bool) -> Hit:
        """The longest prefix that is kept, below `length`.

        keys: of each group's pages, from the first on, as far as they are full below `length`. fetch: whether lower
        tiers are asked as well, where copying is cheaper than computing.
        """
        groups = self._layout.groups
        on_device = longest_prefix(groups, keys, length - 1, self._index)
        if not fetch or not self._lower.there:
            return self._hit(keys, on_device, on_device)
        anywhere = longest_prefix(groups, keys, length - 1, Either(self._index, self._lower))
        if anywhere == on_device:
            return self._hit(keys, on_device, on_device)
        hit = self._hit(keys, anywhere, on_device)
        if hit.arriving or self._is_worth_fetching(hit):
            return hit
        return replace(self._hit(keys, on_device, on_device), declined=True)

    def _hit(self, keys: Many[Many[PageKey]], length: int, on_device: int) -> Hit:
        """The hit that ends at `length`."""
        groups = self._layout.groups
        first = tuple(first_page_seen(group, length) for group in groups)
        found = tuple(
            tuple(self._page_of(key) for key in own[begin : length // group.page_tokens])
            for group, own, begin in zip(groups, keys, first, strict=True)
        )
        hit = Hit(
            tokens=length,
            first=first,
            pages=found,
            missing=sum(own.count(None) for own in found),
            held=sum(
                page is not None and self._pool.count(page) > 0
                for group, own in zip(groups, found, strict=True)
                if group.window is None
                for page in own
            ),
            tokens_on_device=on_device,
        )
        return self._with_lower_tiers(hit, keys) if hit.missing else hit

    def _with_lower_tiers(self, hit: Hit, keys: Many[Many[PageKey]]) -> Hit:
        """With what the lower tiers say of its missing pages."""
        missing = [key for _, _, key in hit.missing_keys(keys)]
        on_disk = sum(self._lower.tier_of(key) is Tier.DISK for key in missing)
        return replace(hit, missing_on_disk=on_disk, arriving=any(map(self._lower.is_arriving, missing)))

    def _page_of(self, key: PageKey) -> int | None:
        entry = self._index.find(key)
        return None if entry is None else entry.page

    def _is_worth_fetching(self, hit: Hit) -> bool:
        if self._fetch_always:
            return True
        pages = {Tier.DISK: hit.missing_on_disk, Tier.HOST: hit.missing - hit.missing_on_disk}
        copies = [
            Copy(count * self._layout.page_bytes, self._lower.book.rate(tier, Tier.DEVICE))
            for tier, count in pages.items()
        ]
        worth = worth_fetching(hit.tokens - hit.tokens_on_device, copies, self._counts.compute_rate)
        return worth or self._counts.declined_fetches % DECLINES_TO_TRY == DECLINES_TO_TRY - 1
