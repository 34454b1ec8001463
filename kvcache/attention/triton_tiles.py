"""Which rows of which sequence a program of the Triton kernels works on, found on the device.

The tokens of a sequence times the query heads of one kv head are its rows: row r is token r // GROUP and head
r % GROUP. A tile is BLOCK_M rows of one sequence and kv head, so that a key is read once for all heads that share it.
Sequences of at most SHORT tokens in a step (decode) and longer ones (prefill) are two launches with tiles of their own.
"""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_tile(
    query_starts, sequences, tile, LONG: tl.constexpr, SHORT: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr
):
    """(sequence, its first flat token, its tokens, first row) of the tile; 0 tokens where it has no work.

    Long sequences: as sequence s begins at row b(s) of the flat order, b(s) // BLOCK_M + s is a first tile that leaves
    every sequence tiles enough, and that a binary search finds again: nothing need be counted on the host.
    """
    if LONG:
        low, high = 0, sequences
        while low < high:
            middle = (low + high) // 2
            if tl.load(query_starts + middle) * GROUP // BLOCK_M + middle <= tile:
                low = middle + 1
            else:
                high = middle
        sequence = low - 1
        begin = tl.load(query_starts + sequence)
        first_row = (tile - begin * GROUP // BLOCK_M - sequence) * BLOCK_M
    else:
        tiles_each: tl.constexpr = (SHORT * GROUP + BLOCK_M - 1) // BLOCK_M
        sequence = tile // tiles_each
        begin = tl.load(query_starts + sequence)
        first_row = (tile % tiles_each) * BLOCK_M
    count = tl.load(query_starts + sequence + 1) - begin
    ours = (count > SHORT) if LONG else (count <= SHORT)
    return sequence, begin, tl.where(ours & (first_row < count * GROUP), count, 0), first_row
