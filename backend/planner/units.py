"""Sizes and times as people read them."""

from __future__ import annotations

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def human_seconds(seconds: float) -> str:
    """Such as "23.9 ms" or "2.1 s"."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def human_bytes(count: int) -> str:
    """`count` bytes in the largest unit of which there is at least one, such as "1.5 GiB"."""
    for size, unit in _UNITS:
        if count >= size:
            amount = count / size
            return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"
    return f"{count} B"
