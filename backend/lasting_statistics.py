"""Statistics that last over restarts of an engine: what counts goes on, what is a state begins again. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backend.events import EngineStatistics
from kvcache.statistics import CacheStatistics

COUNTERS = (
    "prompt_tokens",
    "generation_tokens",
    "preemptions",
    "steps",
    "step_seconds",
    "scheduling_seconds",
    "nan_requests",
)
CACHE_COUNTERS = (
    "lookup_tokens",
    "hit_tokens",
    "host_hit_tokens",
    "disk_hit_tokens",
    "evictions",
    "host_evictions",
    "disk_evictions",
    "offloaded_pages",
    "stored_pages",
    "host_fetched_pages",
    "disk_fetched_pages",
    "declined_fetches",
    "failed_transfers",
    "rejected_records",
)
# What a dead engine's cache had room for; the next one has as much.
CACHE_CAPACITIES = ("pages_total", "page_bytes", "host_pages_total", "disk_bytes_total")


def carried_on(earlier: EngineStatistics, now: EngineStatistics) -> EngineStatistics:
    """The present engine's statistics, its counters beginning at those of the earlier ones."""
    cache = msgspec.structs.replace(now.cache, **_sums(earlier.cache, now.cache, CACHE_COUNTERS))
    return msgspec.structs.replace(now, cache=cache, **_sums(earlier, now, COUNTERS))


def begun_again(last: EngineStatistics, waiting: int) -> EngineStatistics:
    """Where an engine has died: nothing but its capacity, until the next one tells its own."""
    cache = CacheStatistics(**{name: getattr(last.cache, name) for name in CACHE_CAPACITIES})
    return EngineStatistics(waiting=waiting, cache=cache)


def _sums(earlier: object, now: object, names: Sequence[str]) -> dict[str, float]:
    return {name: getattr(earlier, name) + getattr(now, name) for name in names}
