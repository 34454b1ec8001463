"""The Triton kernel of paged attention: a program takes a tile of rows over a part of its context."""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from kvcache.attention.triton_blocks import attend_blocks
from kvcache.attention.triton_numbers import LOG2_E
from kvcache.attention.triton_tiles import find_tile


@triton.jit
def oldest_seen(position, WINDOW: tl.constexpr, CHUNKED: tl.constexpr):
    """`kvcache.layout.oldest_seen`, save that it may be below 0."""
    return position // WINDOW * WINDOW if CHUNKED else position - WINDOW + 1


@triton.jit
def load_query(rows, valid, FROM: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Elements FROM to FROM + SIZE of each row, zeros to PADDED: [BLOCK_M, PADDED]."""
    columns = tl.arange(0, PADDED)
    inside = valid[:, None] & (columns < SIZE)[None, :]
    return tl.load(rows[:, None] + (FROM + columns)[None, :], mask=inside, other=0.0)


@triton.jit
def store_section(rows, sums, valid, FROM: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """[BLOCK_M, PADDED] to elements FROM to FROM + SIZE of each row."""
    columns = tl.arange(0, PADDED)
    inside = valid[:, None] & (columns < SIZE)[None, :]
    tl.store(rows[:, None] + (FROM + columns)[None, :], sums.to(rows.dtype.element_ty), mask=inside)


# Numbers that change from step to step must not make a compilation of their own.
@triton.jit(do_not_specialize=["table_columns", "sequences"])
def attend_kernel(  # noqa: PLR0915 (one program, whose values a GPU keeps in registers: pieces would pass twenty each)
    query, query_token, out, partial, peaks, totals, sinks,
    query_starts, starts, tables, table_columns, first_pages, sequences,
    keys, key_page, key_head, values, value_page, value_head,
    key_scales, key_scale_page, key_scale_head, value_scales, value_scale_page, value_scale_head,
    scaling, softcap,
    LONG: tl.constexpr, SHORT: tl.constexpr, GROUP: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr, CHUNKED: tl.constexpr,
    KEY_SIZE: tl.constexpr, KEY_FIRST: tl.constexpr, KEY_MAIN: tl.constexpr, KEY_REST: tl.constexpr,
    VALUE_SIZE: tl.constexpr, VALUE_FIRST: tl.constexpr, VALUE_MAIN: tl.constexpr, VALUE_REST: tl.constexpr,
    KEY_FORMAT: tl.constexpr, VALUE_FORMAT: tl.constexpr, NATIVE: tl.constexpr,
    SCORE_TYPE: tl.constexpr, SUM_TYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """query [T, heads, KEY_SIZE] over pages. Grid: (tiles, kv_heads, splits).

    Without `partial` (one split) the answer goes to out [T, heads, VALUE_SIZE]; with it, this part's sums, peaks and
    totals go to the places that `merge_kernel` reads. WINDOW: 0 for all positions. SCORE_TYPE and SUM_TYPE: in what
    queries meet keys and probabilities meet values.
    """
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    if LONG:
        # The last tiles of a prompt see most: they begin first.
        tile = tl.num_programs(0) - 1 - tile
    sequence, query_begin, count, first_row = find_tile(query_starts, sequences, tile, LONG, SHORT, GROUP, BLOCK_M)
    if count == 0:
        return
    row_numbers = tl.arange(0, BLOCK_M)
    rows = first_row + row_numbers
    valid = rows < count * GROUP
    token = tl.minimum(rows // GROUP, count - 1)
    first_own = tl.load(starts + sequence) + first_row // GROUP
    last_own = tl.load(starts + sequence) + tl.minimum((first_row + BLOCK_M - 1) // GROUP, count - 1)
    own = tl.load(starts + sequence) + token
    heads = tl.num_programs(1) * GROUP
    flat = (query_begin + token).to(tl.int64)
    head = kv_head * GROUP + rows % GROUP
    query_rows = query + flat * query_token + head * KEY_SIZE
    q = load_query(query_rows, valid, 0, KEY_FIRST, KEY_MAIN).to(SCORE_TYPE)
    q_rest = q
    if KEY_REST > 0:
        q_rest = load_query(query_rows, valid, KEY_FIRST, KEY_SIZE - KEY_FIRST, KEY_REST).to(SCORE_TYPE)
    oldest, seen_from, all_from = own, 0, 0
    if WINDOW > 0:
        oldest = oldest_seen(own, WINDOW, CHUNKED)
        seen_from = tl.maximum(oldest_seen(first_own, WINDOW, CHUNKED), 0)
        all_from = tl.maximum(oldest_seen(last_own, WINDOW, CHUNKED), 0)
    seen_to = last_own + 1
    start = seen_from // BLOCK_N * BLOCK_N
    blocks = tl.cdiv(tl.cdiv(seen_to - start, BLOCK_N), tl.num_programs(2))
    begin = start + tl.program_id(2) * blocks * BLOCK_N
    end = tl.minimum(begin + blocks * BLOCK_N, tl.cdiv(seen_to, BLOCK_N) * BLOCK_N)
    # Between these, every row sees whole blocks.
    full_begin = tl.cdiv(all_from, BLOCK_N) * BLOCK_N
    full_end = (first_own + 1) // BLOCK_N * BLOCK_N

    wide_head = kv_head.to(tl.int64)
    table = tables + sequence.to(tl.int64) * table_columns - tl.load(first_pages + sequence)
    keys += wide_head * key_head
    if values is not None:
        values += wide_head * value_head
    if key_scales is not None:
        key_scales += wide_head * key_scale_head
    if value_scales is not None:
        value_scales += wide_head * value_scale_head
    factor = scaling
    if softcap is None:
        factor = scaling * LOG2_E
    sums = tl.zeros((BLOCK_M, VALUE_MAIN), tl.float32)
    sums_rest = tl.zeros((BLOCK_M, VALUE_REST if VALUE_REST > 0 else 1), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # Edges with masks, the middle without.
    for part in tl.static_range(0 if WINDOW > 0 else 1, 3):
        if part == 0:
            part_begin, part_end = begin, tl.minimum(full_begin, end)
        elif part == 1:
            part_begin, part_end = tl.maximum(begin, full_begin), tl.minimum(full_end, end)
        else:
            part_begin, part_end = tl.maximum(begin, tl.maximum(full_begin, full_end)), end
        sums, sums_rest, peak, total = attend_blocks(
            sums, sums_rest, peak, total, q, q_rest, own, oldest, part_begin, part_end, seen_from, seen_to,
            table, keys, key_page, values, value_page, key_scales, key_scale_page, value_scales, value_scale_page,
            factor, softcap,
            PAGE_TOKENS, WINDOW, BLOCK_N, part != 1,
            KEY_SIZE, KEY_FIRST, KEY_MAIN, KEY_REST, VALUE_SIZE, VALUE_FIRST, VALUE_MAIN, VALUE_REST,
            KEY_FORMAT, VALUE_FORMAT, NATIVE, SCORE_TYPE, SUM_TYPE,
        )  # fmt: skip

    if partial is not None:
        places = (tile.to(tl.int64) * tl.num_programs(1) + kv_head) * tl.num_programs(2) + tl.program_id(2)
        places = places * BLOCK_M + row_numbers
        tl.store(peaks + places, peak, mask=valid)
        tl.store(totals + places, total, mask=valid)
        target = partial + places * VALUE_SIZE
    else:
        if sinks is not None:
            sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
            new_peak = tl.maximum(peak, sink)
            sums = sums * tl.exp2(peak - new_peak)[:, None]
            sums_rest = sums_rest * tl.exp2(peak - new_peak)[:, None]
            total = total * tl.exp2(peak - new_peak) + tl.exp2(sink - new_peak)
        sums = sums / total[:, None]
        sums_rest = sums_rest / total[:, None]
        target = out + (flat * heads + head) * VALUE_SIZE
    store_section(target, sums, valid, 0, VALUE_FIRST, VALUE_MAIN)
    if VALUE_REST > 0:
        store_section(target, sums_rest, valid, VALUE_FIRST, VALUE_SIZE - VALUE_FIRST, VALUE_REST)
