"""What a running server tells of its cache, and what must hold of it whatever happened."""

from __future__ import annotations

import time
from typing import Any

import httpx


def cache_statistics(url: str) -> dict[str, Any]:
    """The fields of CacheStatistics."""
    return httpx.get(f"{url}/cache", timeout=30).raise_for_status().json()["engines"][0]["statistics"]


def settled(url: str, seconds: float = 6.0) -> int:
    """Pages written to disk so far, once an idle server has written none for so long."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        pages = cache_statistics(url)["stored_pages"]
        if pages != seen:
            seen, since = pages, time.monotonic()
        time.sleep(0.2)
    return seen


def conserved(statistics: dict[str, Any]) -> bool:
    """Whether every page of the pool is free, cached or used, and no lower tier holds more than it has room for."""
    parts = statistics["pages_free"] + statistics["pages_cached"] + statistics["pages_used"]
    return (
        parts == statistics["pages_total"]
        and statistics["host_pages_used"] <= statistics["host_pages_total"]
        and statistics["disk_bytes_used"] <= statistics["disk_bytes_total"]
    )
