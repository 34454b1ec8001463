"""CacheView: a server's cache as clients read it from `/cache`; checked, because a server may send anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from kvcache.statistics import CacheMap, CacheStatistics

MOST_CELLS = 1024


@dataclass(frozen=True, slots=True)
class CacheView:
    """One engine's figures, and its map where it has told."""

    statistics: CacheStatistics = field(default_factory=CacheStatistics)
    map: CacheMap | None = None


class _Cells(msgspec.Struct):
    pages_per_cell: Annotated[int, msgspec.Meta(ge=1)]
    device: Annotated[str, msgspec.Meta(max_length=MOST_CELLS, pattern="^[0-3]*$")]


class _Engine(msgspec.Struct):
    statistics: CacheStatistics
    map: _Cells | None = None


class _Body(msgspec.Struct):
    engines: Annotated[list[_Engine], msgspec.Meta(min_length=1)]


def read_cache(content: bytes) -> CacheView:
    """The main engine's cache. Raises ValueError for anything but the body of `/cache`."""
    engine = msgspec.json.decode(content, type=_Body).engines[0]
    cells = engine.map and CacheMap(engine.map.pages_per_cell, bytes(int(digit) for digit in engine.map.device))
    return CacheView(engine.statistics, cells)
