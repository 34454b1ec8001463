"""The processor kernel's work items: attention over packed pages with tile products and an online softmax.

Inner order of a page (16 positions are one block; a pair is two bfloat16, or one float32):

    keys    [position block][key_size / pair][16 positions][pair]
    values  [value block of 16][page_tokens / pair][16 values][pair]

so that scores of 16 positions, and sums over values of 16 dimensions, are tile products without a horizontal sum.
The online softmax is Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

import numpy
from numba import carray, cfunc, njit  # pyright: ignore[reportPrivateImportUsage]

from kvcache.attention.softmax import HIDDEN, cap_scores, soften_row
from quant.cpu.memory import bits_of_float, floats_at, halves_at, integers_at, short_integers_at
from quant.cpu.team import ITEM_SIGNATURE, arguments_at
from quant.cpu.tiles import gather_rows, product_rows

# Query rows (tokens times query heads of a kv head) that one work item computes, in tiles of 6.
ITEM_ROWS = 24
# Positions whose scores are held at once.
SPAN = 64
LOG2_E = numpy.float32(1.4426950408889634)
ATTEND_WORDS, WRITE_WORDS, SCRATCH_WORDS = 20, 16, 10

_score = product_rows(SPAN // 16, rounded=False)
_sum_wide, _sum_narrow = gather_rows(4), gather_rows(1)


@njit(nogil=True, cache=True)
def _item(
    paired, query, query_stride, out, out_stride, group, key_size, value_size, page_tokens, keys, values, page_stride,
    window, scaling, softcap, sinks, head, tokens, position, first_page, table, scratch,
):  # fmt: skip
    """A few tokens of one sequence under one kv head: `head` counts query heads before the group's first."""
    element, pair = (2, 2) if paired else (4, 1)
    rows = tokens * group
    copied, scores, weights, sums, zeros, pages, peaks, totals, factors, numbers = (
        scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5], scratch[6], scratch[7], scratch[8],
        scratch[9],
    )  # fmt: skip
    copy_stride = key_size * element
    peak, total, factor = (
        carray(floats_at(peaks), (ITEM_ROWS,)), carray(floats_at(totals), (ITEM_ROWS,)),
        carray(floats_at(factors), (ITEM_ROWS,)),
    )  # fmt: skip
    constants = carray(floats_at(numbers), (3,))
    constants[0], constants[1], constants[2] = scaling, softcap, scaling * LOG2_E
    page_list = carray(integers_at(pages), (SPAN // 16,))
    accumulated = carray(floats_at(sums), (ITEM_ROWS, value_size))
    _copy_query(query, query_stride, copied, copy_stride, group, tokens)
    accumulated[:rows] = numpy.float32(0.0)
    _begin_rows(rows, sinks, head, group, peak, total)
    key_steps, value_steps = key_size // pair, page_tokens // pair
    unit = min(page_tokens, SPAN)
    length = position + tokens
    lowest = max(0, position - window + 1) if window > 0 else 0
    place = (lowest // unit) * unit
    while place < length:
        span = min(SPAN, length - place)
        count = (span + unit - 1) // unit
        offset = place % page_tokens
        for index in range(count):
            page_list[index] = values + page_stride * table[(place + index * unit) // page_tokens - first_page]
        b0 = _block(keys, page_stride, page_tokens, key_steps, table, first_page, place)
        b1 = _block(keys, page_stride, page_tokens, key_steps, table, first_page, place + 16) if span > 16 else b0
        b2 = _block(keys, page_stride, page_tokens, key_steps, table, first_page, place + 32) if span > 32 else b0
        b3 = _block(keys, page_stride, page_tokens, key_steps, table, first_page, place + 48) if span > 48 else b0
        _score(rows, paired, copied, copy_stride, key_steps, zeros, scores, SPAN * 4, 0, b0, b1, b2, b3)
        for row in range(rows):
            own = position + row // group
            high = min(span, own + 1 - place)
            low = max(0, own + 1 - window - place) if window > 0 else 0
            if softcap > numpy.float32(0.0):
                cap_scores(scores + row * SPAN * 4, numbers, numbers + 4)
            soften_row(
                paired, scores + row * SPAN * 4, weights + row * SPAN * element, low, high, numbers + 8,
                peaks + row * 4, totals + row * 4, factors + row * 4,
            )  # fmt: skip
            if factor[row] != numpy.float32(1.0):
                accumulated[row] *= factor[row]
        _sum_values(
            rows, paired, weights, SPAN * element, pages, count, offset // pair * 64, unit // pair, value_steps * 64,
            value_size // 16, sums,
        )  # fmt: skip
        place += SPAN
    for row in range(rows):
        line = out + (row // group) * out_stride + (row % group) * value_size * element
        _finish(accumulated[row], numpy.float32(1.0) / total[row], line, value_size, paired)


@njit(nogil=True, cache=True)
def _begin_rows(rows, sinks, head, group, peak, total):
    """The softmax of no position yet: nothing seen, or each head's sink alone."""
    for row in range(rows):
        if sinks:
            peak[row] = carray(floats_at(sinks), (head + group,))[head + row % group] * LOG2_E
            total[row] = numpy.float32(1.0)
        else:
            peak[row], total[row] = numpy.float32(HIDDEN), numpy.float32(0.0)


@njit(nogil=True, cache=True)
def _sum_values(rows, paired, weights, stride, pages, count, offset, steps, block_stride, blocks, sums):
    """sums [rows][blocks * 16] += weights [rows] x the values of `count` pages."""
    block = 0
    while block < blocks:
        begin, target = offset + block * block_stride, sums + block * 64
        if block + 4 <= blocks:
            _sum_wide(rows, paired, weights, stride, pages, count, begin, steps, block_stride, target, blocks * 64)
            block += 4
        else:
            _sum_narrow(rows, paired, weights, stride, pages, count, begin, steps, block_stride, target, blocks * 64)
            block += 1


@njit(nogil=True, cache=True)
def _block(keys, page_stride, page_tokens, steps, table, first_page, position):
    """Address of the 16 packed keys that begin at `position`."""
    page = table[position // page_tokens - first_page]
    return keys + page_stride * page + (position % page_tokens) // 16 * steps * 64


@njit(nogil=True, cache=True)
def _copy_query(query, query_stride, copied, copy_stride, group, tokens):
    """Gathers the group's rows of each token side by side, so that rows have one stride."""
    words = group * copy_stride // 4
    for token in range(tokens):
        source = carray(floats_at(query + token * query_stride), (words,))
        target = carray(floats_at(copied + token * group * copy_stride), (words,))
        for i in range(words):
            target[i] = source[i]


@njit(nogil=True, cache=True)
def _finish(sums, factor, line, size, paired):
    if paired:
        halves = carray(halves_at(line), (size,))
        for i in range(size):
            value = sums[i] * factor
            bits = bits_of_float(value)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            # Rounding could carry a NaN into infinity.
            halves[i] = numpy.uint16(rounded) if value == value else numpy.uint16(0x7FC0)  # noqa: PLR0124
    else:
        floats = carray(floats_at(line), (size,))
        for i in range(size):
            floats[i] = sums[i] * factor


@cfunc(ITEM_SIGNATURE, cache=True)
def attend_item(arguments, item, thread):
    """A few tokens of one sequence under one kv head; work [items, 5] as `prepare` makes it."""
    words = arguments_at(arguments, ATTEND_WORDS)
    paired, query, query_stride, out, out_stride, group, kv_heads, key_size, value_size = (
        words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7], words[8]
    )  # fmt: skip
    page_tokens, keys, values, page_stride, head_stride, window, sinks, work, tables, columns, scratch = (
        words[9], words[10], words[11], words[12], words[13], words[14], words[15], words[16], words[17], words[18],
        words[19],
    )  # fmt: skip
    numbers = carray(floats_at(arguments + 8 * ATTEND_WORDS), (2,))
    element = 2 if paired else 4
    line, kv_head = arguments_at(work + item // kv_heads * 40, 5), item % kv_heads
    sequence, token, position, tokens, first_page = line[0], line[1], line[2], line[3], line[4]
    head = kv_head * group
    _item(
        paired, query + token * query_stride + head * key_size * element, query_stride,
        out + token * out_stride + head * value_size * element, out_stride, group, key_size, value_size, page_tokens,
        keys + kv_head * head_stride, values + kv_head * head_stride, page_stride, window, numbers[0], numbers[1],
        sinks, head, tokens, position, first_page,
        carray(short_integers_at(tables + sequence * columns * 4), (columns,)),
        arguments_at(scratch + thread * SCRATCH_WORDS * 8, SCRATCH_WORDS),
    )  # fmt: skip


@njit(nogil=True, cache=True)
def _write_token(paired, key, value, kv_heads, key_size, value_size, page_tokens, keys, values, head_stride, offset):
    """One token's K and V into its page, at `offset`. A page's first token clears the page's values.

    (What a former owner left there takes weight 0, and 0 times a NaN would still be a NaN.)
    """
    inner, block = offset % 16, offset // 16
    for head in range(kv_heads):
        key_place, value_place = keys + head * head_stride, values + head * head_stride
        if paired:
            pairs = carray(floats_at(key + head * key_size * 2), (key_size // 2,))
            packed = carray(floats_at(key_place), (page_tokens // 16, key_size // 2, 16))
            for i in range(key_size // 2):
                packed[block, i, inner] = pairs[i]
            halves = carray(halves_at(value + head * value_size * 2), (value_size // 16, 16))
            spread = carray(halves_at(value_place), (value_size // 16, page_tokens // 2, 16, 2))
            if offset == 0:
                spread[:] = numpy.uint16(0)
            for i in range(value_size // 16):
                for j in range(16):
                    spread[i, offset // 2, j, offset % 2] = halves[i, j]
        else:
            singles = carray(floats_at(key + head * key_size * 4), (key_size,))
            lines = carray(floats_at(key_place), (page_tokens // 16, key_size, 16))
            for i in range(key_size):
                lines[block, i, inner] = singles[i]
            floats = carray(floats_at(value + head * value_size * 4), (value_size // 16, 16))
            plain = carray(floats_at(value_place), (value_size // 16, page_tokens, 16))
            if offset == 0:
                plain[:] = numpy.float32(0.0)
            for i in range(value_size // 16):
                for j in range(16):
                    plain[i, offset, j] = floats[i, j]


@cfunc(ITEM_SIGNATURE, cache=True)
def write_item(arguments, item, thread):
    """The tokens whose page has this number modulo the items: a page's first token clears it before others write."""
    words = arguments_at(arguments, WRITE_WORDS)
    paired, key, key_stride, value, value_stride, kv_heads, key_size, value_size = (
        words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7]
    )  # fmt: skip
    page_tokens, keys, values, page_stride, head_stride, slots, tokens, items = (
        words[8], words[9], words[10], words[11], words[12], words[13], words[14], words[15]
    )  # fmt: skip
    places = arguments_at(slots, tokens)
    for token in range(tokens):
        page, offset = places[token] // page_tokens, places[token] % page_tokens
        if page % items == item:
            _write_token(
                paired, key + token * key_stride, value + token * value_stride, kv_heads, key_size, value_size,
                page_tokens, keys + page * page_stride, values + page * page_stride, head_stride, offset,
            )  # fmt: skip
