"""CacheStatistics and CacheMap: what the cache tells of itself, as immutable snapshots. Counting is its owners'."""

from __future__ import annotations

from msgspec import Struct

FREE, CACHED, USED, SHARED = range(4)


class CacheStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot of the KV cache over all tiers. Pages are counted now; all else runs from the engine's start.

    Attributes:
        pages_total, pages_free: pages of the device pool, and those that hold nothing of use.
        pages_used, pages_shared: pages that sequences hold, and how many of these more than one holds.
        pages_cached: pages that no sequence holds and that a prefix can hit; used + cached + free = total.
        page_bytes: bytes of a page, equal over tiers.
        host_pages_total, host_pages_used: slots of the host tier, and those that hold a page.
        disk_bytes_total, disk_bytes_used, disk_pages: the disk tier's budget, what its records take, and their count.
        lookup_tokens: tokens of admitted sequences; hit_tokens: those of them that cached pages served;
        host_hit_tokens, disk_hit_tokens: those of the hits that were fetched from these tiers.
        evictions, host_evictions, disk_evictions: pages whose place was given to another.
        offloaded_pages, stored_pages: copied from device to host; written to disk.
        host_fetched_pages, disk_fetched_pages: copied back to the device.
        declined_fetches: hits on lower tiers not taken, because computing again was cheaper.
        failed_transfers: transfers that ended without success; rejected_records: those of them whose record was broken.
        offload_rate, host_fetch_rate, store_rate, disk_fetch_rate: bytes per second while copying, 0 where not known.
        compute_rate: prompt tokens computed per second, 0 where not known.
    """

    pages_total: int = 0
    pages_free: int = 0
    pages_used: int = 0
    pages_shared: int = 0
    pages_cached: int = 0
    page_bytes: int = 0
    host_pages_total: int = 0
    host_pages_used: int = 0
    disk_bytes_total: int = 0
    disk_bytes_used: int = 0
    disk_pages: int = 0
    lookup_tokens: int = 0
    hit_tokens: int = 0
    host_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    evictions: int = 0
    host_evictions: int = 0
    disk_evictions: int = 0
    offloaded_pages: int = 0
    stored_pages: int = 0
    host_fetched_pages: int = 0
    disk_fetched_pages: int = 0
    declined_fetches: int = 0
    failed_transfers: int = 0
    rejected_records: int = 0
    offload_rate: float = 0.0
    host_fetch_rate: float = 0.0
    store_rate: float = 0.0
    disk_fetch_rate: float = 0.0
    compute_rate: float = 0.0


class DiskStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot of the disk tier. Pages and bytes are the folder's, all models counted; the rest runs from the start.

    `misses` counts loads that gave no page, by reason; `rejected` those of them whose record was there.
    """

    pages: int = 0
    bytes: int = 0
    budget: int = 0
    stored: int = 0
    evictions: int = 0
    failed_writes: int = 0
    misses: dict[str, int] = {}
    rejected: int = 0


class CacheMap(Struct, frozen=True):
    """What the device's pages hold, for people to look at: one byte a cell, each the state of a run of pages.

    `pages_per_cell` pages make a cell (the last may have fewer); a cell shows the busiest of its pages. `device` has at
    most 1,024 cells of the values FREE, CACHED, USED and SHARED.
    """

    pages_per_cell: int
    device: bytes
