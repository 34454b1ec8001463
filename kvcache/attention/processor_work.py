"""What the processor kernel does in one step: work items over tokens and ranges of positions, and what is merged.

An item computes a few tokens under each kv head. Most cover all that their tokens see and write their answers. Where
that leaves threads without work, an item covers a range of the context (Dao et al., "Flash-Decoding", 2023); and where
sequences share a prefix, an item covers it for tokens of several of them. These write partial results, which are merged
afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from kvcache.attention.kernel import AttentionShape, GroupStep
from kvcache.attention.processor_sharing import LEAST_SHARED, shared_prefixes

Integers = NDArray[numpy.int64]

# Query rows (tokens times query heads of a kv head) that one work item computes, in tiles of 6.
ITEM_ROWS = 24
# Positions whose scores are held at once; ranges begin at multiples of it.
SPAN = 64
# An item's line: page table, its first page, where its members begin, their count, the positions [low, high) that it
# covers, the first of the group's heads and their count, where its partial results begin; -1 where it writes answers.
LINE_WORDS = 9
NO_PARTIAL = -1
# Items are cut until each thread has about so many, as long as they keep so many positions.
ITEMS_A_THREAD, LEAST_POSITIONS = 4, 256


@dataclass(frozen=True, slots=True)
class Work:
    """lines [items, LINE_WORDS]; members [..] tokens in the flat order; positions [T] of all tokens.

    merged [M] are the tokens whose answers are put together; the partial results of the i-th have the numbers
    parts[edges[i] : edges[i + 1]], of `partials` in all. A partial result holds all heads of a token.
    """

    lines: Integers
    members: Integers
    positions: Integers
    merged: Integers
    edges: Integers
    parts: Integers
    partials: int


@dataclass(frozen=True, slots=True)
class _Areas:
    """Items before they are cut: [n] each, as the line's words."""

    rows: Integers
    begins: Integers
    counts: Integers
    lows: Integers
    highs: Integers
    partial: NDArray[numpy.bool_]


def plan_work(step: GroupStep, shape: AttentionShape, threads: int) -> Work:
    edges, starts = step.query_starts.numpy().astype(numpy.int64), step.starts.numpy().astype(numpy.int64)
    counts = edges[1:] - edges[:-1]
    positions = numpy.arange(edges[-1]) + numpy.repeat(starts - edges[:-1], counts)
    group = shape.heads // shape.kv_heads
    ranges = -(-group // ITEM_ROWS)
    heads = -(-group // ranges)
    tokens = ITEM_ROWS // heads
    areas, members = _own_areas(edges, counts, positions, tokens, shape), numpy.arange(edges[-1])
    first_pages = step.first_pages.numpy()
    if shape.window is None:
        areas, members = _with_shared(areas, members, step.tables.numpy(), starts, counts, edges, tokens, shape)
        areas = _cut(areas, shape.kv_heads * ranges, threads)
    bases = numpy.where(areas.partial, numpy.cumsum(areas.counts * areas.partial) - areas.counts, NO_PARTIAL)
    columns = (areas.rows, first_pages[areas.rows], areas.begins, areas.counts, areas.lows, areas.highs)
    if ranges == 1:
        lines = numpy.stack((*columns, numpy.zeros_like(bases), numpy.full_like(bases, heads), bases), axis=1)
    else:
        firsts = numpy.tile(numpy.arange(ranges) * heads, len(bases))
        repeated = [numpy.repeat(column, ranges) for column in (*columns, bases)]
        lines = numpy.stack((*repeated[:-1], firsts, numpy.minimum(heads, group - firsts), repeated[-1]), axis=1)
    return Work(numpy.ascontiguousarray(lines, numpy.int64), members, positions, *_merges(areas, members))


def _own_areas(edges: Integers, counts: Integers, positions: Integers, tokens: int, shape: AttentionShape) -> _Areas:
    """Each sequence's tokens by themselves, `tokens` an item."""
    if int(counts.max()) <= tokens:
        rows, begins, sizes = numpy.arange(len(counts)), edges[:-1], counts
    else:
        pieces = -(-counts // tokens)
        rows = numpy.repeat(numpy.arange(len(counts)), pieces)
        within = _counted(pieces) * tokens
        begins = edges[rows] + within
        sizes = numpy.minimum(tokens, counts[rows] - within)
    first = positions[begins]
    if shape.window is None:
        lows = numpy.zeros_like(first)
    elif shape.chunked:
        lows = first // shape.window * shape.window
    else:
        lows = numpy.maximum(0, first - shape.window + 1)
    return _Areas(rows, begins, sizes, lows, first + sizes, numpy.zeros(len(rows), numpy.bool_))


def _with_shared(
    areas: _Areas, members: Integers, tables: NDArray[numpy.int32], starts: Integers, counts: Integers,
    edges: Integers, tokens: int, shape: AttentionShape,
) -> tuple[_Areas, Integers]:  # fmt: skip
    """Sequences of few tokens that share a prefix leave it to items of their own, which come first, being longest."""
    few = numpy.flatnonzero(counts <= tokens)
    if len(few) < 2:
        return areas, members
    size = shape.page_tokens
    groups = shared_prefixes(tables, starts // size, few, -(-LEAST_SHARED // size))
    lows, partial, added, lists, end = areas.lows.copy(), areas.partial.copy(), [], [members], len(members)
    for group in groups:
        inside = numpy.zeros(len(counts), numpy.bool_)
        inside[list(group.rows)] = True
        own = inside[areas.rows]
        lows[own], partial[own] = group.pages * size, True
        together = numpy.flatnonzero(numpy.repeat(inside, counts))
        lists.append(together)
        # Even parts: a short last one would read all for a row or two.
        part = -(-len(together) // -(-len(together) // tokens))
        for first in range(0, len(together), part):
            taken = min(part, len(together) - first)
            added.append((group.rows[0], end + first, taken, 0, group.pages * size))
        end += len(together)
    if not added:
        return areas, members
    rows, begins, sizes, low, high = numpy.array(added, numpy.int64).T
    return _Areas(
        numpy.concatenate((rows, areas.rows)), numpy.concatenate((begins, areas.begins)),
        numpy.concatenate((sizes, areas.counts)), numpy.concatenate((low, lows)),
        numpy.concatenate((high, areas.highs)), numpy.concatenate((numpy.ones(len(rows), numpy.bool_), partial)),
    ), numpy.concatenate(lists)  # fmt: skip


def _cut(areas: _Areas, copies: int, threads: int) -> _Areas:
    """Items that are long against what a thread has to do are cut into ranges. copies: items that an area becomes."""
    lengths = areas.highs - areas.lows
    most = int(lengths.max())
    share = max(LEAST_POSITIONS, -(-int(lengths.sum()) * copies // (threads * ITEMS_A_THREAD)))
    if threads < 2 or most <= share:
        return areas
    # Equal pieces end together where their number is a multiple of the threads'.
    even = threads // math.gcd(threads, copies)
    pieces = -(-lengths // share)
    pieces = numpy.where(pieces > 1, -(-pieces // even) * even, 1)
    size = -(-lengths // (pieces * SPAN)) * SPAN
    pieces = -(-lengths // size)
    index = numpy.repeat(numpy.arange(len(lengths)), pieces)
    lows = areas.lows[index] + _counted(pieces) * size[index]
    return _Areas(
        areas.rows[index], areas.begins[index], areas.counts[index], lows,
        numpy.minimum(lows + size[index], areas.highs[index]), (areas.partial | (pieces > 1))[index],
    )  # fmt: skip


def _merges(areas: _Areas, members: Integers) -> tuple[Integers, Integers, Integers, int]:
    """Work's merged, edges, parts and partials."""
    if not areas.partial.any():
        none = numpy.zeros(0, numpy.int64)
        return none, none, none, 0
    counts = areas.counts[areas.partial]
    tokens = members[numpy.repeat(areas.begins[areas.partial], counts) + _counted(counts)]
    parts = numpy.argsort(tokens, kind="stable")
    ordered = tokens[parts]
    firsts = numpy.flatnonzero(numpy.append(True, ordered[1:] != ordered[:-1]))
    return ordered[firsts], numpy.append(firsts, len(tokens)), parts, len(tokens)


def _counted(counts: Integers) -> Integers:
    """0 .. count - 1 for each count, one behind the other."""
    ends = numpy.cumsum(counts)
    return numpy.arange(ends[-1]) - numpy.repeat(ends - counts, counts)
