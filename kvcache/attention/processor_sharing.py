"""Which sequences of a step begin with the same pages for long enough that reading these once for all of them pays.

Method: Juravsky et al., "Hydragen: High-Throughput LLM Inference with Shared Prefixes" (2024); Ye et al., "Cascade
Inference" (FlashInfer, 2024). Pure numpy over page tables: who shares pages, and why, is the cache manager's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy
from numpy.typing import NDArray

# Positions below which reading once saves less than putting two results together costs, as measured with small heads
# whose pages a second-level cache holds.
LEAST_SHARED = 256


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Rows of the page tables, at least two, that agree in their first `pages` pages."""

    rows: tuple[int, ...]
    pages: int


def shared_prefixes(
    tables: NDArray[numpy.int32], whole_pages: NDArray[numpy.int64], rows: NDArray[numpy.int64], least_pages: int
) -> list[SharedPrefix]:
    """Disjoint groups among `rows` of tables [S, P], chosen so that the most pages need not be read again.

    whole_pages: [S], how many of its first pages a row may share. A group agrees in at least `least_pages`.
    """
    firsts = tables[rows, 0].tolist()
    if len(set(firsts)) == len(firsts):
        return []
    # Any order puts tables that begin alike side by side.
    ordered = sorted(rows.tolist(), key=lambda row: tables[row].tobytes())
    lines, limits = tables[ordered], whole_pages[ordered]
    differs = lines[1:] != lines[:-1]
    agreed = numpy.where(differs.any(1), differs.argmax(1), lines.shape[1])
    common = numpy.minimum(agreed, numpy.minimum(limits[1:], limits[:-1])).tolist()
    groups = _best_groups(common, 0, len(ordered), max(1, least_pages))
    return [SharedPrefix(tuple(ordered[first:end]), pages) for first, end, pages in groups]


def _best_groups(common: list[int], first: int, end: int, least: int) -> list[tuple[int, int, int]]:
    """Groups (first, end, pages) among the rows [first, end) in order; common[i]: pages that rows i and i + 1 share.

    All of the rows share the smallest number; cut there, the parts may share so much more that they save more.
    """
    if end - first < 2:
        return []
    pages = min(common[first : end - 1])
    if end - first == 2:
        return [(first, end, pages)] if pages >= least else []
    cuts = [row + 1 for row in range(first, end - 1) if common[row] == pages]
    if len(cuts) == end - first - 1:
        parts = []
    else:
        edges = [first, *cuts, end]
        parts = [group for begin, after in pairwise(edges) for group in _best_groups(common, begin, after, least)]
    whole = [(first, end, pages)] if pages >= least else []
    return whole if _saved(whole) >= _saved(parts) else parts


def _saved(groups: list[tuple[int, int, int]]) -> int:
    return sum((end - first - 1) * pages for first, end, pages in groups)
