"""The processor kernel's merging: answers put together from partial results over ranges of the context.

Method: Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

from __future__ import annotations

import numpy
from numba import carray, cfunc, njit  # pyright: ignore[reportPrivateImportUsage]

from kvcache.attention import processor_words as at
from kvcache.attention.processor_items import LOG2_E, PARTIAL_EXTRA, store_scaled
from kvcache.attention.softmax import HIDDEN
from quant.cpu.memory import floats_at
from quant.cpu.team import ITEM_SIGNATURE, arguments_at


@njit(nogil=True, cache=True)
def _partial(words, number, head):
    """One head's partial result: its sums, peak and total, [value_size + 2]."""
    size = words[at.VALUE_SIZE]
    place = (number * words[at.GROUP] * words[at.KV_HEADS] + head) * (size + PARTIAL_EXTRA) * 4
    return carray(floats_at(words[at.PARTIALS] + place), (size + 2,))


@njit(nogil=True, cache=True)
def _merge_head(words, parts, head, place):
    """The sink, where there is one, is counted here alone: partial results know none."""
    size = words[at.VALUE_SIZE]
    highest, added = numpy.float32(HIDDEN), numpy.float32(0.0)
    if words[at.SINKS]:
        highest = carray(floats_at(words[at.SINKS]), (head + 1,))[head] * LOG2_E
        added = numpy.float32(1.0)
    peak = highest
    for index in range(len(parts)):
        peak = max(peak, _partial(words, parts[index], head)[size])
    added *= numpy.exp2(highest - peak)
    # The first partial result takes the sum of all in, and is not read again.
    sums = _partial(words, parts[0], head)
    for index in range(len(parts)):
        one = _partial(words, parts[index], head)
        share = numpy.exp2(one[size] - peak)
        added += one[size + 1] * share
        if index == 0:
            for i in range(size):
                sums[i] *= share
        else:
            for i in range(size):
                sums[i] += one[i] * share
    store_scaled(sums, numpy.float32(1.0) / added, place, size, words[at.PAIRED])


@cfunc(ITEM_SIGNATURE, cache=True)
def merge_item(arguments, item, thread):
    """One token under all heads."""
    words = arguments_at(arguments, at.WORDS)
    edges = arguments_at(words[at.EDGES] + item * 8, 2)
    parts = arguments_at(words[at.PARTS] + edges[0] * 8, edges[1] - edges[0])
    token = arguments_at(words[at.MERGED] + item * 8, 1)[0]
    width = words[at.VALUE_SIZE] * (2 if words[at.PAIRED] else 4)
    for head in range(words[at.GROUP] * words[at.KV_HEADS]):
        _merge_head(words, parts, head, words[at.OUT] + token * words[at.OUT_STRIDE] + head * width)
