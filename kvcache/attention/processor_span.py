"""A span of positions as the tile products take it: where its packed keys, values and scales lie, made wide if codes.

A span lies in `count` pages, or in part of one page that is larger. What is found goes into the thread's working memory
(`scratch`, addresses by number).
"""

from __future__ import annotations

import numpy
from numba import carray, njit  # pyright: ignore[reportPrivateImportUsage]

from kvcache.attention import processor_words as at
from kvcache.attention.processor_work import ITEM_ROWS, SPAN
from quant.cpu.codes import GROUP as CODES
from quant.cpu.codes import PLAIN, ask_for, widen_codes
from quant.cpu.memory import float_of_bits, floats_at, halves_at
from quant.cpu.team import arguments_at
from quant.cpu.transpose import turn_block

BLOCKS = SPAN // 16
# A thread's working memory, by number.
(
    COPIED, SCORES, WEIGHTS, SUMS, ZEROS, PAGES, PEAKS, TOTALS, FACTORS, CONSTANTS, KEY_BLOCKS, WIDE_KEYS, WIDE_VALUES,
    KEY_SHARES, VALUE_SHARES, ONES, OWN_POSITIONS, OLDEST, CODE_ROW, NEXT_KEYS, NEXT_PAGES, SCRATCH_WORDS,
) = range(22)  # fmt: skip


def scratch_sizes(key_size: int, value_size: int) -> tuple[int, ...]:
    """Bytes of each part of a thread's working memory; 0 for the part that is ones, [SPAN] float32, for all threads."""
    row, span = ITEM_ROWS * 4, SPAN * 4
    return (
        row * key_size, row * SPAN, row * SPAN, row * value_size, span, BLOCKS * 8, row, row, row, 12, BLOCKS * 8,
        span * key_size, span * value_size, span, span, 0, ITEM_ROWS * 8, ITEM_ROWS * 8, max(key_size, value_size),
        BLOCKS * 8, BLOCKS * 8,
    )  # fmt: skip


@njit(nogil=True, cache=True)
def find_keys(words, kv_head, pages, offset, widen, scratch):
    """KEY_BLOCKS become the addresses of the span's packed keys, or with `widen` of what their codes stand for.

    pages: the span's, from `offset` in the first on.
    """
    paired, kind, size, unit = words[at.PAIRED], words[at.KEY_KIND], words[at.KEY_SIZE], words[at.UNIT]
    wide = 2 if paired else 4
    element = 1 if kind != PLAIN else wide
    blocks, base = arguments_at(scratch[KEY_BLOCKS], BLOCKS), words[at.KEYS] + kv_head * words[at.KEY_HEAD]
    found = 0
    for index in range(len(pages)):
        begin = base + words[at.KEY_PAGE] * pages[index] + offset * size * element
        if widen:
            target = scratch[WIDE_KEYS] + index * unit * size * wide
            widen_codes(kind, paired, begin, target, unit * size // CODES)
            begin, element = target, wide
        for block in range(unit >> 4):
            blocks[found] = begin + block * size * 16 * element
            found += 1
        element = 1 if kind != PLAIN else wide
    for index in range(found, BLOCKS):
        blocks[index] = blocks[0]


@njit(nogil=True, cache=True)
def value_shares(words, scratch):
    """Where the factors of the values lie: their scales, or ones."""
    if words[at.VALUES] == 0:
        return scratch[KEY_SHARES] if words[at.KEY_KIND] != PLAIN else scratch[ONES]
    return scratch[VALUE_SHARES] if words[at.VALUE_KIND] != PLAIN else scratch[ONES]


@njit(nogil=True, cache=True)
def find_shares(words, kv_head, pages, offset, scratch):
    """The scales of the span's keys and values, as float32."""
    if words[at.KEY_KIND] != PLAIN:
        base = words[at.KEY_SCALES] + kv_head * words[at.KEY_SCALE_HEAD] + offset * 2
        _widen_scales(base, words[at.KEY_SCALE_PAGE], words[at.UNIT], pages, scratch[KEY_SHARES])
    if words[at.VALUES] != 0 and words[at.VALUE_KIND] != PLAIN:
        base = words[at.VALUE_SCALES] + kv_head * words[at.VALUE_SCALE_HEAD] + offset * 2
        _widen_scales(base, words[at.VALUE_SCALE_PAGE], words[at.UNIT], pages, scratch[VALUE_SHARES])


@njit(nogil=True, cache=True)
def _widen_scales(base, stride, unit, pages, target):
    """Positions past the span may get anything: softmax masks them."""
    shares = carray(floats_at(target), (SPAN,))
    for index in range(len(pages)):
        for begin in range(0, unit, 16):
            halves = carray(halves_at(base + stride * pages[index] + begin * 2), (16,))
            for i in range(16):
                shares[index * unit + begin + i] = float_of_bits(numpy.int32(numpy.int32(halves[i]) << numpy.int32(16)))


@njit(nogil=True, cache=True)
def find_values(words, kv_head, pages, offset, span, widen, scratch):
    """PAGES become the addresses of the span's packed values, or with `widen` of what their codes stand for.

    Returns their count, and the values' offset, steps and stride in each.
    """
    paired, page_tokens, size, unit = words[at.PAIRED], words[at.PAGE_TOKENS], words[at.VALUE_SIZE], words[at.UNIT]
    element, pair = (2, 2) if paired else (4, 1)
    if words[at.VALUES] == 0:
        return _turn_latents(paired, size, span, scratch)
    places, base = arguments_at(scratch[PAGES], BLOCKS), words[at.VALUES] + kv_head * words[at.VALUE_HEAD]
    for index in range(len(pages)):
        places[index] = base + words[at.VALUE_PAGE] * pages[index]
    if words[at.VALUE_KIND] == PLAIN:
        return len(pages), offset * 64 // pair, unit // pair, page_tokens * 64 // pair
    if not widen:
        return len(pages), offset * 16, unit // pair, page_tokens * 16
    wide = unit * 16 * element
    for index in range(len(pages)):
        target = scratch[WIDE_VALUES] + index * unit * size * element
        if unit == page_tokens:
            widen_codes(words[at.VALUE_KIND], paired, places[index], target, unit * size // CODES)
        else:
            for block in range(size >> 4):
                source = places[index] + (block * page_tokens + offset) * 16
                widen_codes(words[at.VALUE_KIND], paired, source, target + block * wide, unit * 16 // CODES)
        places[index] = target
    return len(pages), 0, unit // pair, wide


@njit(nogil=True, cache=True)
def _turn_latents(paired, size, span, scratch):
    """The first `size` elements of the span's keys as values, in WIDE_VALUES."""
    element, pair = (2, 2) if paired else (4, 1)
    places, blocks = arguments_at(scratch[PAGES], BLOCKS), arguments_at(scratch[KEY_BLOCKS], BLOCKS)
    places[0] = scratch[WIDE_VALUES]
    count = (span + 15) >> 4
    for index in range(count):
        turn_block(paired, blocks[index], places[0] + index * 256 * element, size >> 4, SPAN * 16 * element)
    return 1, 0, count * 16 // pair, SPAN * 16 * element


@njit(nogil=True, cache=True)
def ask_for_codes(words, kv_head, pages, offset):
    """Asks for the keys and values of a span that is computed next: of codes, a page is shorter than a prefetcher's
    guess takes to come right."""
    page_tokens, unit = words[at.PAGE_TOKENS], words[at.UNIT]
    keys = words[at.KEYS] + kv_head * words[at.KEY_HEAD] + offset * words[at.KEY_SIZE]
    values = words[at.VALUES] + kv_head * words[at.VALUE_HEAD] + offset * 16
    for index in range(len(pages)):
        if words[at.KEY_KIND] != PLAIN:
            ask_for(keys + words[at.KEY_PAGE] * pages[index], unit * words[at.KEY_SIZE] >> 6)
        if words[at.VALUES] == 0 or words[at.VALUE_KIND] == PLAIN:
            continue
        begin = values + words[at.VALUE_PAGE] * pages[index]
        if unit == page_tokens:
            ask_for(begin, words[at.VALUE_SIZE] * unit >> 6)
        else:
            for block in range(words[at.VALUE_SIZE] >> 4):
                ask_for(begin + block * page_tokens * 16, unit * 16 >> 6)


@njit(nogil=True, cache=True)
def ask_for_scales(words, kv_head, pages, offset):
    """Asks for the scales of a span that is computed next."""
    key_scales = words[at.KEY_SCALES] + kv_head * words[at.KEY_SCALE_HEAD] + offset * 2
    value_scales = words[at.VALUE_SCALES] + kv_head * words[at.VALUE_SCALE_HEAD] + offset * 2
    lines = (words[at.UNIT] >> 5) + 1
    for index in range(len(pages)):
        if words[at.KEY_KIND] != PLAIN:
            ask_for(key_scales + words[at.KEY_SCALE_PAGE] * pages[index], lines)
        if words[at.VALUE_KIND] != PLAIN:
            ask_for(value_scales + words[at.VALUE_SCALE_PAGE] * pages[index], lines)


@njit(nogil=True, cache=True)
def find_following(words, kv_head, pages, offset, here, scratch):
    """NEXT_KEYS and NEXT_PAGES become the addresses of codes that the next span will read, whose pages these are.

    offset: of the next span in its first page; here: of the one that is computed meanwhile.
    """
    unit, size = words[at.UNIT], words[at.KEY_SIZE]
    keys, places = arguments_at(scratch[NEXT_KEYS], BLOCKS), arguments_at(scratch[NEXT_PAGES], BLOCKS)
    base = words[at.KEYS] + kv_head * words[at.KEY_HEAD] + offset * size
    values = words[at.VALUES] + kv_head * words[at.VALUE_HEAD] + (offset - here) * 16
    found = 0
    for index in range(len(pages)):
        begin = base + words[at.KEY_PAGE] * pages[index]
        places[index] = values + words[at.VALUE_PAGE] * pages[index]
        for block in range(unit >> 4):
            keys[found] = begin + block * size * 16
            found += 1
    for index in range(found, BLOCKS):
        keys[index] = keys[0]
    for index in range(len(pages), BLOCKS):
        places[index] = places[0]
