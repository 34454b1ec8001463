"""CacheCounts: what the cache manager counts while it works, and how all of it is told."""

from __future__ import annotations

from dataclasses import dataclass

from kvcache.hit import Hit
from kvcache.lower_tiers import LowerTiers
from kvcache.page_pool import PagePool
from kvcache.statistics import CacheStatistics, DiskStatistics
from kvcache.transfer import Tier

# How much of the measured rate one observation replaces.
NEWEST_SHARE = 0.2


@dataclass(slots=True)
class CacheCounts:
    """Fields as in CacheStatistics."""

    lookup_tokens: int = 0
    hit_tokens: int = 0
    host_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    evictions: int = 0
    declined_fetches: int = 0
    compute_rate: float = 0.0

    def admit(self, length: int, hit: Hit) -> None:
        """A sequence of so many tokens runs after this hit. What was fetched is shared out by pages over the tiers."""
        self.lookup_tokens += length
        self.hit_tokens += hit.tokens
        fetched = hit.tokens - hit.tokens_on_device
        on_disk = fetched * hit.missing_on_disk // hit.missing if hit.missing else 0
        self.disk_hit_tokens += on_disk
        self.host_hit_tokens += fetched - on_disk

    def observe_compute(self, tokens: int, seconds: float) -> None:
        """So many prompt tokens were computed in this time: a moving mean."""
        if seconds > 0:
            share = NEWEST_SHARE if self.compute_rate else 1.0
            self.compute_rate += share * (tokens / seconds - self.compute_rate)


def describe(pool: PagePool, lower: LowerTiers, counts: CacheCounts, page_bytes: int) -> CacheStatistics:
    """A snapshot."""
    book = lower.book
    disk = lower.disk.statistics() if lower.disk is not None else DiskStatistics()
    return CacheStatistics(
        pages_total=pool.total,
        pages_used=pool.used,
        pages_free=pool.free,
        pages_shared=pool.shared,
        pages_cached=pool.cached,
        page_bytes=page_bytes,
        host_pages_total=lower.host.total,
        host_pages_used=lower.host.used,
        lookup_tokens=counts.lookup_tokens,
        hit_tokens=counts.hit_tokens,
        host_hit_tokens=counts.host_hit_tokens,
        disk_hit_tokens=counts.disk_hit_tokens,
        disk_bytes_total=disk.budget,
        disk_bytes_used=disk.bytes,
        disk_pages=disk.pages,
        evictions=counts.evictions,
        host_evictions=lower.evictions,
        disk_evictions=disk.evictions,
        offloaded_pages=book.copied[Tier.DEVICE, Tier.HOST],
        stored_pages=book.copied[Tier.HOST, Tier.DISK] + book.copied[Tier.DEVICE, Tier.DISK],
        host_fetched_pages=book.copied[Tier.HOST, Tier.DEVICE],
        disk_fetched_pages=book.copied[Tier.DISK, Tier.DEVICE],
        declined_fetches=counts.declined_fetches,
        failed_transfers=book.failed,
        rejected_records=disk.rejected,
        offload_rate=book.rate(Tier.DEVICE, Tier.HOST),
        host_fetch_rate=book.rate(Tier.HOST, Tier.DEVICE),
        store_rate=book.rate(Tier.HOST, Tier.DISK) or book.rate(Tier.DEVICE, Tier.DISK),
        disk_fetch_rate=book.rate(Tier.DISK, Tier.DEVICE),
        compute_rate=counts.compute_rate,
    )
