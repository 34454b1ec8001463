"""How figures are written for people: bytes, seconds, tokens, meters. Pure."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes in the unit that people compare downloads in: 93 MB, 1.4 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            figure = count / factor
            return f"{figure:.1f} {unit}" if figure < 10 else f"{figure:.0f} {unit}"
    return f"{count} B"


def seconds(duration: float) -> str:
    if duration < 1:
        return f"{duration * 1000:.0f} ms"
    return f"{duration:.1f} s" if duration < 60 else f"{int(duration // 60)} min {int(duration % 60)} s"


def meter(used: int, total: int, cells: int = 10) -> str:
    """A bar of `cells` characters, with at least one filled as soon as something is used."""
    filled = min(cells, max(1 if used else 0, round(cells * used / total)))
    return "█" * filled + "░" * (cells - filled)
