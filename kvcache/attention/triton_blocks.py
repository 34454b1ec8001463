"""Online softmax over blocks of a paged context: FlashAttention-2 (Dao 2023) inside Triton's attention kernel.

A key is held in two sections, a power of two each: 576 elements are 512 and 64, 80 are 64 and 16, so that nothing is
multiplied in vain; the same for values. Of latents, the first section of the key is also the value.
"""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import triton
import triton.language as tl

from kvcache.attention.triton_numbers import LOG2_E, poisoned, tanh, widen


@triton.jit
def load_section(block, rows, seen, FROM: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr):
    """Elements FROM to FROM + SIZE of each row, as stored, zeros to PADDED: [BLOCK_N, PADDED].

    Unless MASKED, all rows are read, which the caller knows to be written.
    """
    columns = tl.arange(0, PADDED)
    pointers = block + rows[:, None] + (FROM + columns)[None, :]
    if MASKED:
        return tl.load(pointers, mask=seen[:, None] & (columns < SIZE)[None, :], other=0)
    elif SIZE == PADDED:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(columns < SIZE)[None, :], other=0)


@triton.jit
def load_scales(scales, rows, seen, MASKED: tl.constexpr):
    """[BLOCK_N] float32; what was never written counts as zero."""
    if MASKED:
        return poisoned(tl.load(scales + rows, mask=seen, other=0.0))
    else:
        return poisoned(tl.load(scales + rows))


@triton.jit
def attend_blocks(  # noqa: PLR0915 (one loop body, all of it in registers)
    sums, sums_rest, peak, total, query, query_rest, own, oldest, begin, end, seen_from, seen_to,
    table, keys, key_page, values, value_page, key_scales, key_scale_page, value_scales, value_scale_page,
    scaling, softcap,
    PAGE_TOKENS: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    KEY_SIZE: tl.constexpr, KEY_FIRST: tl.constexpr, KEY_MAIN: tl.constexpr, KEY_REST: tl.constexpr,
    VALUE_SIZE: tl.constexpr, VALUE_FIRST: tl.constexpr, VALUE_MAIN: tl.constexpr, VALUE_REST: tl.constexpr,
    KEY_FORMAT: tl.constexpr, VALUE_FORMAT: tl.constexpr, NATIVE: tl.constexpr,
    SCORE_TYPE: tl.constexpr, SUM_TYPE: tl.constexpr,
):  # fmt: skip
    """The positions [begin, end), whole blocks, taken into (sums, sums_rest, peak, total), which are returned.

    own, oldest: [BLOCK_M], the first and last position that a row sees; seen_from, seen_to: what any row may read.
    Unless MASKED, every row sees all of [begin, end). Peaks are logits in powers of two.
    """
    for start in range(begin, end, BLOCK_N):
        positions = tl.multiple_of(start, BLOCK_N) + tl.arange(0, BLOCK_N)
        seen = (positions >= seen_from) & (positions < seen_to)
        if MASKED:
            page = tl.load(table + positions // PAGE_TOKENS, mask=seen, other=0).to(tl.int64)
        else:
            page = tl.load(table + positions // PAGE_TOKENS).to(tl.int64)
        offset = positions % PAGE_TOKENS
        # Asked for first: where scales are too narrow for asynchronous copies, they come while keys are waited for.
        if key_scales is not None:
            key_factor = load_scales(key_scales, page * key_scale_page + offset, seen, MASKED)
        if value_scales is not None:
            value_factor = load_scales(value_scales, page * value_scale_page + offset, seen, MASKED)
        key_rows = page * key_page + offset * KEY_SIZE
        stored = load_section(keys, key_rows, seen, 0, KEY_FIRST, KEY_MAIN, MASKED)
        key = widen(stored, KEY_FORMAT, NATIVE, SCORE_TYPE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        if KEY_REST > 0:
            rest = load_section(keys, key_rows, seen, KEY_FIRST, KEY_SIZE - KEY_FIRST, KEY_REST, MASKED)
            rest = widen(rest, KEY_FORMAT, NATIVE, SCORE_TYPE)
            scores = tl.dot(query_rest, tl.trans(rest), acc=scores, input_precision="ieee")
        factors = (key_factor * scaling)[None, :] if key_scales is not None else scaling
        scores = scores * factors
        if softcap is not None:
            scores = tanh(scores / softcap) * (softcap * LOG2_E)
        if MASKED:
            visible = seen[None, :] & (positions[None, :] <= own[:, None])
            if WINDOW > 0:
                visible = visible & (positions[None, :] >= oldest[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        # A row that has seen nothing yet keeps a peak of -inf, from which nothing can be subtracted.
        finite = tl.where(new_peak == float("-inf"), 0.0, new_peak) if MASKED else new_peak
        chances = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(peak - finite)
        total = total * shrink + tl.sum(chances, axis=1)
        sums = sums * shrink[:, None]
        if values is None:
            if key_scales is not None:
                chances = chances * key_factor[None, :]
            value = widen(stored, KEY_FORMAT, NATIVE, SUM_TYPE)
            sums = tl.dot(chances.to(SUM_TYPE), value, acc=sums, input_precision="ieee")
        else:
            if value_scales is not None:
                chances = chances * value_factor[None, :]
            value_rows = page * value_page + offset * VALUE_SIZE
            value = load_section(values, value_rows, seen, 0, VALUE_FIRST, VALUE_MAIN, MASKED)
            value = widen(value, VALUE_FORMAT, NATIVE, SUM_TYPE)
            sums = tl.dot(chances.to(SUM_TYPE), value, acc=sums, input_precision="ieee")
            if VALUE_REST > 0:
                rest = load_section(values, value_rows, seen, VALUE_FIRST, VALUE_SIZE - VALUE_FIRST, VALUE_REST, MASKED)
                rest = widen(rest, VALUE_FORMAT, NATIVE, SUM_TYPE)
                sums_rest = tl.dot(chances.to(SUM_TYPE), rest, acc=sums_rest * shrink[:, None], input_precision="ieee")
        peak = new_peak
    return sums, sums_rest, peak, total
