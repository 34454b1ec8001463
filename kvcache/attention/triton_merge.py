"""The Triton kernel that makes one answer of the parts of a context (flash-decoding, Dao et al. 2023)."""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
# pyright: reportOperatorIssue=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import triton
import triton.language as tl

from kvcache.attention.triton_numbers import LOG2_E
from kvcache.attention.triton_tiles import find_tile


@triton.jit(do_not_specialize=["sequences", "splits"])
def merge_kernel(
    partial, peaks, totals, out, sinks, query_starts, sequences, splits, kv_heads,
    LONG: tl.constexpr, SHORT: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, VALUE_SIZE: tl.constexpr,
    PADDED_SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program makes the answer of one row: partial [tiles, kv_heads, splits, BLOCK_M, VALUE_SIZE], peaks and totals
    without the last dimension, in powers of two. sinks: [heads] or None."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    _, begin, count, first_row = find_tile(query_starts, sequences, tile, LONG, SHORT, GROUP, BLOCK_M)
    row = first_row + tl.program_id(2)
    if row >= count * GROUP:
        return
    head = kv_head * GROUP + row % GROUP
    parts = tl.arange(0, PADDED_SPLITS)
    there = parts < splits
    places = ((tile.to(tl.int64) * kv_heads + kv_head) * splits + parts) * BLOCK_M + tl.program_id(2)
    part_peaks = tl.load(peaks + places, mask=there, other=float("-inf"))
    part_totals = tl.load(totals + places, mask=there, other=0.0)
    peak = tl.max(part_peaks, axis=0)
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        peak = tl.maximum(peak, sink)
    weights = tl.exp2(part_peaks - peak)
    total = tl.sum(weights * part_totals, axis=0)
    if sinks is not None:
        total += tl.exp2(sink - peak)
    target = out + ((begin + row // GROUP).to(tl.int64) * (kv_heads * GROUP) + head) * VALUE_SIZE
    for first in range(0, VALUE_SIZE, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = columns < VALUE_SIZE
        block = tl.load(
            partial + places[:, None] * VALUE_SIZE + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        answer = tl.sum(block * weights[:, None], axis=0) / total
        tl.store(target + columns, answer.to(out.dtype.element_ty), mask=inside)
