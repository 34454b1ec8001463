"""The cache's figures as words for people: one line for the status, a few for the screen. Pure."""

from __future__ import annotations

from app.tui import format as figures
from kvcache.statistics import CacheStatistics

METER_CELLS = 20


def status(cache: CacheStatistics) -> str:
    """`KV 34% · 1,024 cached · host 12%`: pages in use, cached pages, and the tiers that there are."""
    if not cache.pages_total:
        return ""
    parts = [f"KV {_percent(cache.pages_used, cache.pages_total)}"]
    if cache.pages_cached:
        parts.append(f"{cache.pages_cached:,} cached")
    if cache.host_pages_total:
        parts.append(f"host {_percent(cache.host_pages_used, cache.host_pages_total)}")
    if cache.disk_bytes_total:
        parts.append(f"disk {_percent(cache.disk_bytes_used, cache.disk_bytes_total)}")
    return " · ".join(parts)


def summary(cache: CacheStatistics) -> str:
    """A bar for each tier, and what the cache has saved so far."""
    held = cache.pages_used + cache.pages_cached
    hits = f"{cache.hit_tokens:,} of {cache.lookup_tokens:,} prompt tokens came from the cache"
    lines = [
        _tier("device", held * cache.page_bytes, cache.pages_total * cache.page_bytes),
        _tier("host", cache.host_pages_used * cache.page_bytes, cache.host_pages_total * cache.page_bytes),
        _tier("disk", cache.disk_bytes_used, cache.disk_bytes_total),
        hits + (f" ({_percent(cache.hit_tokens, cache.lookup_tokens)})" if cache.lookup_tokens else ""),
        f"pages offloaded {cache.offloaded_pages:,} · back from host {cache.host_fetched_pages:,}"
        f" · stored {cache.stored_pages:,} · back from disk {cache.disk_fetched_pages:,}",
    ]
    return "\n".join(lines)


def _tier(name: str, used: int, total: int) -> str:
    if not total:
        return f"{name:<6} none"
    return f"{name:<6} {figures.meter(used, total, METER_CELLS)} {figures.size(used)} of {figures.size(total)}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%"
