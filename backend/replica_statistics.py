"""Statistics of several engines as one engine's. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from backend.events import EngineStatistics
from kvcache.statistics import CacheStatistics

# Equal in all, or of the one folder that they share.
_LARGEST = ("page_bytes", "disk_bytes_total", "disk_bytes_used", "disk_pages")


def summed(each: Sequence[EngineStatistics]) -> EngineStatistics:
    """All counts added up; sizes and the disk's state, which are one for all, are not."""
    caches = [one.cache for one in each]
    names = CacheStatistics.__struct_fields__
    cache = CacheStatistics(
        **{name: (max if name in _LARGEST else sum)(getattr(one, name) for one in caches) for name in names}
    )
    counts = [name for name in EngineStatistics.__struct_fields__ if name != "cache"]
    return EngineStatistics(**{name: sum(getattr(one, name) for one in each) for name in counts}, cache=cache)
