"""The processor kernel's attention: work items over packed pages with tile products and an online softmax.

Inner order of a page (16 positions are one block; a pair is two elements where the model is bfloat16, else one):

    keys    [position block][key_size / pair][16 positions][pair]
    values  [value block of 16][page_tokens / pair][16 values][pair]

so that scores of 16 positions, and sums over values of 16 dimensions, are tile products without a horizontal sum.
Codes of one byte lie in the same order, but for that within each 64 of them (see `quant.cpu.codes`); an item widens
them a span at a time, once for all its rows, into memory that stays in the nearest cache. Latents are turned there too.
The online softmax is Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

import numpy
from numba import carray, cfunc, njit  # pyright: ignore[reportPrivateImportUsage]

from kvcache.attention import processor_words as at
from kvcache.attention.processor_work import ITEM_ROWS, LINE_WORDS, SPAN
from kvcache.attention.softmax import HIDDEN, cap_scores, scale_scores, soften_row
from quant.cpu.codes import GROUP as CODES
from quant.cpu.codes import PLAIN, ask_for, widen_codes
from quant.cpu.memory import bits_of_float, float_of_bits, floats_at, halves_at, short_integers_at
from quant.cpu.team import ITEM_SIGNATURE, arguments_at
from quant.cpu.tiles import gather_rows, product_rows
from quant.cpu.transpose import turn_block

LOG2_E = numpy.float32(1.4426950408889634)
BLOCKS = SPAN // 16
# Floats behind a partial result's sums: its peak and total, and the rest of a cache line.
PARTIAL_EXTRA = 16
# A thread's working memory, by number.
(
    COPIED, SCORES, WEIGHTS, SUMS, ZEROS, PAGES, PEAKS, TOTALS, FACTORS, CONSTANTS, KEY_BLOCKS, WIDE_KEYS, WIDE_VALUES,
    KEY_SHARES, VALUE_SHARES, ONES, MEMBER_POSITIONS, CODE_ROW, SCRATCH_WORDS,
) = range(19)  # fmt: skip


def scratch_sizes(key_size: int, value_size: int) -> tuple[int, ...]:
    """Bytes of each part of a thread's working memory; 0 for the part that is ones, [SPAN] float32, for all threads."""
    row, span = ITEM_ROWS * 4, SPAN * 4
    return (
        row * key_size, row * SPAN, row * SPAN, row * value_size, span, BLOCKS * 8, row, row, row, 12, BLOCKS * 8,
        span * key_size, span * value_size, span, span, 0, ITEM_ROWS * 8, max(key_size, value_size),
    )  # fmt: skip


_score = product_rows(BLOCKS, rounded=False)
_sum_wide, _sum_narrow = gather_rows(4), gather_rows(1)


@njit(nogil=True, cache=True)
def _item(words, line, kv_head, table, members, positions, scratch):
    """A few tokens, under the heads [line[6], + line[7]) of a kv head's group, over the positions [low, high)."""
    paired, key_size, value_size = words[at.PAIRED], words[at.KEY_SIZE], words[at.VALUE_SIZE]
    element = 2 if paired else 4
    page_tokens, first_page, tokens, low, high, heads = (
        words[at.PAGE_TOKENS], line[1], line[3], line[4], line[5], line[7]
    )  # fmt: skip
    rows, unit, key_steps = tokens * heads, min(page_tokens, SPAN), key_size * element // 4
    copied, scores, weights, sums, factors = (
        scratch[COPIED], scratch[SCORES], scratch[WEIGHTS], scratch[SUMS], scratch[FACTORS]
    )  # fmt: skip
    constants, blocks = carray(floats_at(scratch[CONSTANTS]), (3,)), arguments_at(scratch[KEY_BLOCKS], BLOCKS)
    factor, accumulated = carray(floats_at(factors), (rows,)), carray(floats_at(sums), (rows, value_size))
    first_head = kv_head * words[at.GROUP] + line[6]
    _copy_query(words, members, first_head, heads, copied)
    _begin_rows(rows, heads, 0 if line[8] >= 0 else words[at.SINKS], first_head, scratch)
    accumulated[:] = numpy.float32(0.0)
    keys_scaled, capped = words[at.KEY_KIND] != PLAIN, constants[1] > numpy.float32(0.0)
    shares = _value_shares(words, scratch)
    place = low // unit * unit
    while place < high:
        span = min(SPAN, high - place)
        if place + SPAN < high:
            _ask_for_pages(words, kv_head, table, first_page, place + SPAN, min(SPAN, high - place - SPAN))
        _find_keys(words, kv_head, table, first_page, place, span, scratch)
        _score(
            rows, paired, copied, key_size * element, key_steps, scratch[ZEROS], scores, SPAN * 4, 0, blocks[0],
            blocks[1], blocks[2], blocks[3],
        )  # fmt: skip
        _find_shares(words, kv_head, table, first_page, place, span, scratch)
        for row in range(rows):
            own = positions[row // heads]
            seen_from = _oldest_seen(own, words[at.WINDOW], words[at.CHUNKED])
            if keys_scaled:
                scale_scores(scores + row * SPAN * 4, scratch[KEY_SHARES])
            if capped:
                cap_scores(scores + row * SPAN * 4, scratch[CONSTANTS], scratch[CONSTANTS] + 4)
            soften_row(
                paired, scores + row * SPAN * 4, weights + row * SPAN * element, seen_from - place,
                min(span, own + 1 - place), scratch[CONSTANTS] + 8, scratch[PEAKS] + row * 4, scratch[TOTALS] + row * 4,
                factors + row * 4, shares,
            )  # fmt: skip
            if factor[row] != numpy.float32(1.0):
                accumulated[row] *= factor[row]
        count, offset, steps, stride = _find_values(words, kv_head, table, first_page, place, span, scratch)
        _sum_values(
            rows, paired, weights, SPAN * element, scratch[PAGES], count, offset, steps, stride, value_size // 16, sums
        )
        place += SPAN
    _hand_over(words, line, members, first_head, heads, scratch)


@njit(nogil=True, cache=True)
def _oldest_seen(position, window, chunked):
    if window == 0:
        return 0
    return position // window * window if chunked else max(0, position - window + 1)


@njit(nogil=True, cache=True)
def _copy_query(words, members, first_head, heads, copied):
    """Gathers the rows of each token side by side, so that rows have one stride."""
    element = 2 if words[at.PAIRED] else 4
    size = words[at.KEY_SIZE] * element
    count = heads * size // 4
    for index in range(len(members)):
        begin = words[at.QUERY] + members[index] * words[at.QUERY_STRIDE] + first_head * size
        source = carray(floats_at(begin), (count,))
        target = carray(floats_at(copied + index * heads * size), (count,))
        for i in range(count):
            target[i] = source[i]


@njit(nogil=True, cache=True)
def _begin_rows(rows, heads, sinks, first_head, scratch):
    """The softmax of no position yet: nothing seen, or each head's sink alone."""
    peak, total = carray(floats_at(scratch[PEAKS]), (rows,)), carray(floats_at(scratch[TOTALS]), (rows,))
    for row in range(rows):
        if sinks:
            peak[row] = carray(floats_at(sinks), (first_head + heads,))[first_head + row % heads] * LOG2_E
            total[row] = numpy.float32(1.0)
        else:
            peak[row], total[row] = numpy.float32(HIDDEN), numpy.float32(0.0)


@njit(nogil=True, cache=True)
def _find_keys(words, kv_head, table, first_page, place, span, scratch):
    """Puts the addresses of the span's packed keys, widened where they are codes, into KEY_BLOCKS."""
    paired, kind, page_tokens = words[at.PAIRED], words[at.KEY_KIND], words[at.PAGE_TOKENS]
    element = 2 if paired else 4
    wide = words[at.KEY_SIZE] * 16 * element
    size = words[at.KEY_SIZE] * 16 if kind != PLAIN else wide
    blocks, base = arguments_at(scratch[KEY_BLOCKS], BLOCKS), words[at.KEYS] + kv_head * words[at.KEY_HEAD]
    for index in range(BLOCKS):
        position = place + index * 16
        if index * 16 >= span:
            blocks[index] = blocks[0]
            continue
        page = table[position // page_tokens - first_page]
        block = base + words[at.KEY_PAGE] * page + position % page_tokens // 16 * size
        if kind != PLAIN:
            target = scratch[WIDE_KEYS] + index * wide
            widen_codes(kind, paired, block, target, size // CODES)
            block = target
        blocks[index] = block


@njit(nogil=True, cache=True)
def _value_shares(words, scratch):
    """Where the factors of the values lie: their scales, or ones."""
    if words[at.VALUES] == 0:
        return scratch[KEY_SHARES] if words[at.KEY_KIND] != PLAIN else scratch[ONES]
    return scratch[VALUE_SHARES] if words[at.VALUE_KIND] != PLAIN else scratch[ONES]


@njit(nogil=True, cache=True)
def _find_shares(words, kv_head, table, first_page, place, span, scratch):
    """The scales of the span's keys and values, as float32."""
    if words[at.KEY_KIND] != PLAIN:
        base, stride = words[at.KEY_SCALES] + kv_head * words[at.KEY_SCALE_HEAD], words[at.KEY_SCALE_PAGE]
        _widen_scales(base, stride, words[at.PAGE_TOKENS], table, first_page, place, span, scratch[KEY_SHARES])
    if words[at.VALUES] != 0 and words[at.VALUE_KIND] != PLAIN:
        base, stride = words[at.VALUE_SCALES] + kv_head * words[at.VALUE_SCALE_HEAD], words[at.VALUE_SCALE_PAGE]
        _widen_scales(base, stride, words[at.PAGE_TOKENS], table, first_page, place, span, scratch[VALUE_SHARES])


@njit(nogil=True, cache=True)
def _widen_scales(base, stride, page_tokens, table, first_page, place, span, target):
    """Positions past the span keep what they had: softmax masks them."""
    shares = carray(floats_at(target), (SPAN,))
    for begin in range(0, span, 16):
        page = table[(place + begin) // page_tokens - first_page]
        halves = carray(halves_at(base + stride * page + (place + begin) % page_tokens * 2), (16,))
        for i in range(16):
            shares[begin + i] = float_of_bits(numpy.int32(numpy.int32(halves[i]) << numpy.int32(16)))


@njit(nogil=True, cache=True)
def _find_values(words, kv_head, table, first_page, place, span, scratch):
    """Puts the addresses of the span's packed values into PAGES: their count, and offset, steps and stride in each."""
    paired, page_tokens, size = words[at.PAIRED], words[at.PAGE_TOKENS], words[at.VALUE_SIZE]
    element, pair = (2, 2) if paired else (4, 1)
    if words[at.VALUES] == 0:
        return _turn_latents(paired, size, span, scratch)
    unit = min(page_tokens, SPAN)
    count, offset = (span + unit - 1) // unit, place % page_tokens
    pages, base = arguments_at(scratch[PAGES], BLOCKS), words[at.VALUES] + kv_head * words[at.VALUE_HEAD]
    for index in range(count):
        pages[index] = base + words[at.VALUE_PAGE] * table[(place + index * unit) // page_tokens - first_page]
    if words[at.VALUE_KIND] == PLAIN:
        return count, offset // pair * 64, unit // pair, page_tokens // pair * 64
    wide = unit * 16 * element
    for index in range(count):
        target = scratch[WIDE_VALUES] + index * unit * size * element
        if unit == page_tokens:
            widen_codes(words[at.VALUE_KIND], paired, pages[index], target, unit * size // CODES)
        else:
            for block in range(size // 16):
                source = pages[index] + (block * page_tokens + offset) * 16
                widen_codes(words[at.VALUE_KIND], paired, source, target + block * wide, unit * 16 // CODES)
        pages[index] = target
    return count, 0, unit // pair, wide


@njit(nogil=True, cache=True)
def _turn_latents(paired, size, span, scratch):
    """The first `size` elements of the span's keys as values, in WIDE_VALUES."""
    element, pair = (2, 2) if paired else (4, 1)
    pages, blocks = arguments_at(scratch[PAGES], BLOCKS), arguments_at(scratch[KEY_BLOCKS], BLOCKS)
    pages[0] = scratch[WIDE_VALUES]
    count = (span + 15) // 16
    for index in range(count):
        turn_block(paired, blocks[index], pages[0] + index * 256 * element, size // 16, SPAN * 16 * element)
    return 1, 0, count * 16 // pair, SPAN * 16 * element


@njit(nogil=True, cache=True)
def _ask_for_pages(words, kv_head, table, first_page, place, span):
    """Asks for the keys and values of a span that is computed next: pages lie anywhere, beyond a prefetcher's guess."""
    page_tokens = words[at.PAGE_TOKENS]
    unit, plain = min(page_tokens, SPAN), 2 if words[at.PAIRED] else 4
    key_bytes = words[at.KEY_SIZE] * (plain if words[at.KEY_KIND] == PLAIN else 1)
    value_bytes = plain if words[at.VALUE_KIND] == PLAIN else 1
    keys, values = words[at.KEYS] + kv_head * words[at.KEY_HEAD], words[at.VALUES] + kv_head * words[at.VALUE_HEAD]
    offset = place % page_tokens
    for index in range((span + unit - 1) // unit):
        page = table[(place + index * unit) // page_tokens - first_page]
        ask_for(keys + words[at.KEY_PAGE] * page + offset * key_bytes, unit * key_bytes // 64)
        if words[at.VALUES] == 0:
            continue
        begin = values + words[at.VALUE_PAGE] * page + offset * 16 * value_bytes
        if unit == page_tokens:
            ask_for(begin, words[at.VALUE_SIZE] * unit * value_bytes // 64)
        else:
            for block in range(words[at.VALUE_SIZE] // 16):
                ask_for(begin + block * page_tokens * 16 * value_bytes, unit * 16 * value_bytes // 64)


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
def _hand_over(words, line, members, first_head, heads, scratch):
    """Writes the rows' answers, or their sums, peaks and totals where others cover the rest of what they see."""
    paired, size = words[at.PAIRED], words[at.VALUE_SIZE]
    element, rows = 2 if paired else 4, len(members) * heads
    sums = carray(floats_at(scratch[SUMS]), (rows, size))
    peak, total = carray(floats_at(scratch[PEAKS]), (rows,)), carray(floats_at(scratch[TOTALS]), (rows,))
    for row in range(rows):
        token, head = row // heads, first_head + row % heads
        if line[8] < 0:
            place = words[at.OUT] + members[token] * words[at.OUT_STRIDE] + head * size * element
            store_scaled(sums[row], numpy.float32(1.0) / total[row], place, size, paired)
        else:
            number = (line[8] + token) * words[at.GROUP] * words[at.KV_HEADS] + head
            partial = carray(floats_at(words[at.PARTIALS] + number * (size + PARTIAL_EXTRA) * 4), (size + 2,))
            partial[:size] = sums[row]
            partial[size], partial[size + 1] = peak[row], total[row]


@njit(nogil=True, cache=True)
def store_scaled(sums, factor, place, size, paired):
    """Writes sums [size] * factor in the model's type."""
    if paired:
        halves = carray(halves_at(place), (size,))
        for i in range(size):
            value = sums[i] * factor
            bits = bits_of_float(value)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            # Rounding could carry a NaN into infinity.
            halves[i] = numpy.uint16(rounded) if value == value else numpy.uint16(0x7FC0)  # noqa: PLR0124
    else:
        floats = carray(floats_at(place), (size,))
        for i in range(size):
            floats[i] = sums[i] * factor


@cfunc(ITEM_SIGNATURE, cache=True)
def attend_item(arguments, item, thread):
    """One line of the work under one kv head."""
    words = arguments_at(arguments, at.WORDS)
    kv_head, columns = item % words[at.KV_HEADS], words[at.COLUMNS]
    line = arguments_at(words[at.WORK] + item // words[at.KV_HEADS] * LINE_WORDS * 8, LINE_WORDS)
    scratch = arguments_at(words[at.SCRATCH] + thread * SCRATCH_WORDS * 8, SCRATCH_WORDS)
    numbers = carray(floats_at(arguments + 8 * at.NUMBERS), (2,))
    constants = carray(floats_at(scratch[CONSTANTS]), (3,))
    constants[0], constants[1], constants[2] = numbers[0], numbers[1], numbers[0] * LOG2_E
    members = arguments_at(words[at.MEMBERS] + line[2] * 8, line[3])
    # Each member's position; the rows of one item are few.
    positions = arguments_at(scratch[MEMBER_POSITIONS], ITEM_ROWS)
    for index in range(line[3]):
        positions[index] = arguments_at(words[at.POSITIONS], members[index] + 1)[members[index]]
    table = carray(short_integers_at(words[at.TABLES] + line[0] * columns * 4), (columns,))
    _item(words, line, kv_head, table, members, positions, scratch)
