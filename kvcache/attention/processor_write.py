"""The processor kernel's writing: K and V of new tokens into packed pages, made codes where the format has codes.

The pages' inner order is `processor_items`'.
"""

from __future__ import annotations

import numpy
from numba import carray, cfunc, njit  # pyright: ignore[reportPrivateImportUsage]

from kvcache.attention import processor_words as at
from kvcache.attention.processor_span import CODE_ROW, SCRATCH_WORDS
from quant.cpu.codes import PLAIN
from quant.cpu.memory import bytes_at, floats_at, halves_at
from quant.cpu.quantize import quantize_row
from quant.cpu.team import ITEM_SIGNATURE, arguments_at


@njit(nogil=True, cache=True)
def _write_key(kind, paired, row, size, offset, block, page, clear, page_tokens):
    """A token's key at `row`, plain or codes, into its page; `clear` empties the page first."""
    inner, element = offset % 16, 1 if kind != PLAIN else (2 if paired else 4)
    if clear:
        carray(bytes_at(page), (page_tokens * size * element,))[:] = numpy.uint8(0)
    begin = page + block * size * 16 * element
    if kind == PLAIN:
        # A pair of bfloat16 moves as one float32.
        steps = size * element // 4
        singles, packed = carray(floats_at(row), (steps,)), carray(floats_at(begin), (steps, 16))
        for i in range(steps):
            packed[i, inner] = singles[i]
    elif paired:
        pairs, groups = carray(halves_at(row), (size // 4, 2)), carray(halves_at(begin), (size // 4, 4, 2, 4))
        for i in range(size // 4):
            for step in range(2):
                groups[i, inner // 4, step, inner % 4] = pairs[i, step]
    else:
        codes, lines = carray(bytes_at(row), (size,)), carray(bytes_at(begin), (size, 16))
        for i in range(size):
            lines[i, inner] = codes[i]


@njit(nogil=True, cache=True)
def _write_value(kind, paired, row, size, offset, page, page_tokens):
    """A token's value into its page. A page's first token clears the page's values.

    (What a former owner left there takes weight 0, and 0 times a NaN would still be a NaN.)
    """
    element, blocks = 1 if kind != PLAIN else (2 if paired else 4), size // 16
    if offset == 0:
        carray(bytes_at(page), (page_tokens * size * element,))[:] = numpy.uint8(0)
    if kind == PLAIN and paired:
        halves = carray(halves_at(row), (blocks, 16))
        spread = carray(halves_at(page), (blocks, page_tokens // 2, 16, 2))
        for i in range(blocks):
            for j in range(16):
                spread[i, offset // 2, j, offset % 2] = halves[i, j]
    elif kind == PLAIN:
        floats, plain = carray(floats_at(row), (blocks, 16)), carray(floats_at(page), (blocks, page_tokens, 16))
        for i in range(blocks):
            for j in range(16):
                plain[i, offset, j] = floats[i, j]
    elif paired:
        codes = carray(bytes_at(row), (blocks, 4, 4))
        groups = carray(bytes_at(page), (blocks, page_tokens // 4, 4, 2, 4, 2))
        for i in range(blocks):
            for quarter in range(4):
                for j in range(4):
                    groups[i, offset // 4, quarter, offset // 2 % 2, j, offset % 2] = codes[i, quarter, j]
    else:
        codes, lines = carray(bytes_at(row), (blocks, 16)), carray(bytes_at(page), (blocks, page_tokens, 16))
        for i in range(blocks):
            for j in range(16):
                lines[i, offset, j] = codes[i, j]


@njit(nogil=True, cache=True)
def _write_token(words, token, page, offset, codes):
    paired, page_tokens = words[at.PAIRED], words[at.PAGE_TOKENS]
    element = 2 if paired else 4
    key_size, value_size, key_kind, value_kind = (
        words[at.KEY_SIZE],
        words[at.VALUE_SIZE],
        words[at.KEY_KIND],
        words[at.VALUE_KIND],
    )
    for head in range(words[at.KV_HEADS]):
        row = words[at.KEY] + token * words[at.KEY_STRIDE] + head * key_size * element
        if key_kind != PLAIN:
            scales = words[at.KEY_SCALES] + page * words[at.KEY_SCALE_PAGE] + head * words[at.KEY_SCALE_HEAD]
            quantize_row(key_kind, paired, row, key_size, codes, scales + offset * 2)
            row = codes
        place = words[at.KEYS] + page * words[at.KEY_PAGE] + head * words[at.KEY_HEAD]
        # Latents are values, too.
        clear = offset == 0 and words[at.VALUES] == 0
        _write_key(key_kind, paired, row, key_size, offset, offset // 16, place, clear, page_tokens)
        if words[at.VALUES] == 0:
            continue
        row = words[at.VALUE] + token * words[at.VALUE_STRIDE] + head * value_size * element
        if value_kind != PLAIN:
            scales = words[at.VALUE_SCALES] + page * words[at.VALUE_SCALE_PAGE] + head * words[at.VALUE_SCALE_HEAD]
            quantize_row(value_kind, paired, row, value_size, codes, scales + offset * 2)
            row = codes
        place = words[at.VALUES] + page * words[at.VALUE_PAGE] + head * words[at.VALUE_HEAD]
        _write_value(value_kind, paired, row, value_size, offset, place, page_tokens)


@cfunc(ITEM_SIGNATURE, cache=True)
def write_item(arguments, item, thread):
    """The tokens whose page has this number modulo the items: a page's first token clears it before others write."""
    words = arguments_at(arguments, at.WORDS)
    codes = arguments_at(words[at.SCRATCH] + thread * SCRATCH_WORDS * 8, SCRATCH_WORDS)[CODE_ROW]
    page_tokens, places = words[at.PAGE_TOKENS], arguments_at(words[at.SLOTS], words[at.TOKENS])
    for token in range(words[at.TOKENS]):
        page, offset = places[token] // page_tokens, places[token] % page_tokens
        if page % words[at.ITEMS] == item:
            _write_token(words, token, page, offset, codes)
