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
from kvcache.attention.processor_span import (
    BLOCKS,
    CONSTANTS,
    COPIED,
    FACTORS,
    KEY_BLOCKS,
    KEY_SHARES,
    NEXT_KEYS,
    NEXT_PAGES,
    OLDEST,
    OWN_POSITIONS,
    PAGES,
    PEAKS,
    SCORES,
    SCRATCH_WORDS,
    SUMS,
    TOTALS,
    WEIGHTS,
    ZEROS,
    ask_for_codes,
    ask_for_scales,
    find_following,
    find_keys,
    find_shares,
    find_values,
    value_shares,
)  # fmt: skip
from kvcache.attention.processor_work import ITEM_ROWS, LINE_WORDS, SPAN
from kvcache.attention.softmax import HIDDEN, cap_scores, scale_scores, soften_row
from quant.cpu.codes import FP8_CODES, PLAIN
from quant.cpu.memory import bits_of_float, floats_at, halves_at, short_integers_at
from quant.cpu.team import ITEM_SIGNATURE, arguments_at
from quant.cpu.tiles import gather_codes, gather_rows, product_codes, product_rows

LOG2_E = numpy.float32(1.4426950408889634)
# Rows for which widening codes in registers is faster than widening them once, in memory, for all rows.
CODED_ROWS = 4
# Floats behind a partial result's sums: its peak and total, and the rest of a cache line.
PARTIAL_EXTRA = 16

_score = product_rows(BLOCKS, rounded=False)
_score_codes = product_codes(BLOCKS)
_sum_wide, _sum_narrow = gather_rows(4), gather_rows(1)
_sum_codes, _sum_code = gather_codes(4), gather_codes(1)


@njit(nogil=True, cache=True)
def _item(words, line, kv_head, table, members, positions, oldest, scratch):
    """A few tokens, under the heads [line[6], + line[7]) of a kv head's group, over the positions [low, high)."""
    paired, key_size, value_size = words[at.PAIRED], words[at.KEY_SIZE], words[at.VALUE_SIZE]
    element = 2 if paired else 4
    low, high, heads, unit, shift = line[4], line[5], line[7], words[at.UNIT], words[at.PAGE_SHIFT]
    rows, key_steps = line[3] * heads, key_size * element // 4
    copied, scores, weights, sums, factors = (
        scratch[COPIED], scratch[SCORES], scratch[WEIGHTS], scratch[SUMS], scratch[FACTORS]
    )  # fmt: skip
    constants, blocks = carray(floats_at(scratch[CONSTANTS]), (3,)), arguments_at(scratch[KEY_BLOCKS], BLOCKS)
    factor = carray(floats_at(factors), (rows,))
    first_head = kv_head * words[at.GROUP] + line[6]
    _copy_query(words, members, first_head, heads, copied)
    _begin_rows(rows, value_size, heads, 0 if line[8] >= 0 else words[at.SINKS], first_head, scratch)
    keys_scaled, capped = words[at.KEY_KIND] != PLAIN, constants[1] > numpy.float32(0.0)
    # Few rows widen codes in their registers; latents are turned from what was widened.
    few = paired != 0 and rows <= CODED_ROWS and words[at.VALUES] != 0
    keys_coded, values_coded = few and keys_scaled, few and words[at.VALUE_KIND] != PLAIN
    coded = keys_scaled or words[at.VALUE_KIND] != PLAIN
    following_blocks = arguments_at(scratch[NEXT_KEYS], BLOCKS)
    shares = value_shares(words, scratch)
    place = low & -unit
    while place < high:
        span = min(SPAN, high - place)
        offset, column = place & (words[at.PAGE_TOKENS] - 1), (place >> shift) - line[1]
        pages = table[column : column + (span + unit - 1) // unit]
        if coded:
            # The last span asks for itself once more: it is near.
            ahead = place + SPAN if place + SPAN < high else place
            column = (ahead >> shift) - line[1]
            following = table[column : column + (min(SPAN, high - ahead) + unit - 1) // unit]
            begin = ahead & (words[at.PAGE_TOKENS] - 1)
            ask_for_scales(words, kv_head, following, begin)
            if few:
                find_following(words, kv_head, following, begin, offset, scratch)
            else:
                ask_for_codes(words, kv_head, following, begin)
        find_keys(words, kv_head, pages, offset, keys_scaled and not keys_coded, scratch)
        if keys_coded:
            _score_codes(
                rows, words[at.KEY_KIND] == FP8_CODES, copied, key_size * element, key_steps, scores, SPAN * 4,
                blocks[0], blocks[1], blocks[2], blocks[3], following_blocks[0], following_blocks[1],
                following_blocks[2], following_blocks[3],
            )  # fmt: skip
        else:
            _score(
                rows, paired, copied, key_size * element, key_steps, scratch[ZEROS], scores, SPAN * 4, 0, blocks[0],
                blocks[1], blocks[2], blocks[3],
            )  # fmt: skip
        find_shares(words, kv_head, pages, offset, scratch)
        for row in range(rows):
            own, seen_from = positions[row], oldest[row]
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
                _shrink(sums + row * value_size * 4, value_size, factor[row])
        count, first, steps, stride = find_values(
            words, kv_head, pages, offset, span, not values_coded, scratch
        )  # fmt: skip
        _sum_values(
            rows,
            paired,
            values_coded,
            words[at.VALUE_KIND] == FP8_CODES,
            weights,
            SPAN * element,
            scratch[PAGES],
            count,
            first,
            steps,
            stride,
            value_size >> 4,
            sums,
            scratch[NEXT_PAGES],
        )
        place += SPAN
    _hand_over(words, line, members, first_head, heads, scratch)


@njit(nogil=True, cache=True)
def _shrink(sums, size, factor):
    values = carray(floats_at(sums), (size,))
    for i in range(size):
        values[i] *= factor


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
def _begin_rows(rows, value_size, heads, sinks, first_head, scratch):
    """The softmax of no position yet: nothing seen, or each head's sink alone."""
    peak, total = carray(floats_at(scratch[PEAKS]), (rows,)), carray(floats_at(scratch[TOTALS]), (rows,))
    sums = carray(floats_at(scratch[SUMS]), (rows * value_size,))
    for i in range(rows * value_size):
        sums[i] = numpy.float32(0.0)
    for row in range(rows):
        if sinks:
            peak[row] = carray(floats_at(sinks), (first_head + heads,))[first_head + row % heads] * LOG2_E
            total[row] = numpy.float32(1.0)
        else:
            peak[row], total[row] = numpy.float32(HIDDEN), numpy.float32(0.0)


@njit(nogil=True, cache=True)
def _sum_values(
    rows, paired, coded, fp8, weights, stride, pages, count, offset, steps, block_stride, blocks, sums, following
):
    """sums [rows][blocks * 16] += weights [rows] x the values of `count` pages, which are codes where `coded`."""
    block, width = 0, blocks * 64
    while block < blocks:
        begin, target = offset + block * block_stride, sums + block * 64
        if block + 4 <= blocks:
            if coded:
                _sum_codes(
                    rows, fp8, weights, stride, pages, count, begin, steps, block_stride, target, width, following
                )
            else:
                _sum_wide(rows, paired, weights, stride, pages, count, begin, steps, block_stride, target, width)
            block += 4
        else:
            if coded:
                _sum_code(
                    rows, fp8, weights, stride, pages, count, begin, steps, block_stride, target, width, following
                )
            else:
                _sum_narrow(rows, paired, weights, stride, pages, count, begin, steps, block_stride, target, width)
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
            for i in range(size):
                partial[i] = sums[row, i]
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
    # Each row's position and the oldest it sees.
    positions, oldest = arguments_at(scratch[OWN_POSITIONS], ITEM_ROWS), arguments_at(scratch[OLDEST], ITEM_ROWS)
    for index in range(line[3]):
        own = arguments_at(words[at.POSITIONS], members[index] + 1)[members[index]]
        for row in range(index * line[7], (index + 1) * line[7]):
            positions[row], oldest[row] = own, _oldest_seen(own, words[at.WINDOW], words[at.CHUNKED])
    table = carray(short_integers_at(words[at.TABLES] + line[0] * columns * 4), (columns,))
    _item(words, line, kv_head, table, members, positions, oldest, scratch)
