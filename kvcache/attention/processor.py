"""The processor kernel: attention that reads packed pages in place, with tile products and an online softmax.

Inner order of a page (16 positions are one block; a pair is two bfloat16, or one float32):

    keys    [position block][key_size / pair][16 positions][pair]
    values  [value block of 16][page_tokens / pair][16 values][pair]

so that scores of 16 positions, and sums over values of 16 dimensions, are tile products without a horizontal sum.
The online softmax is Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from numba import carray, cfunc, njit  # pyright: ignore[reportPrivateImportUsage]
from numpy.typing import NDArray
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages
from kvcache.attention.softmax import HIDDEN, cap_scores, soften_row
from quant.cpu.memory import bits_of_float, floats_at, halves_at, integers_at, short_integers_at
from quant.cpu.team import ITEM_SIGNATURE, Team, arguments_at
from quant.cpu.tiles import gather_tile, product_tile

# Query rows (tokens times query heads of a kv head) that one work item computes, in tiles of 6.
ITEM_ROWS = 24
# Positions whose scores are held at once.
SPAN = 64
LOG2_E = numpy.float32(1.4426950408889634)
# Tokens whose K and V one thread writes faster than two would begin to.
WRITE_ALONE = 64
ATTEND_WORDS, WRITE_WORDS, SCRATCH_WORDS = 20, 16, 10

_scores6, _scores5, _scores4, _scores3, _scores2, _scores1 = (
    product_tile(rows, 4, rounded=False) for rows in (6, 5, 4, 3, 2, 1)
)
_sums6, _sums5, _sums4, _sums3, _sums2, _sums1 = (gather_tile(rows, 4) for rows in (6, 5, 4, 3, 2, 1))
_sums6_narrow, _sums1_narrow = (gather_tile(rows, 1) for rows in (6, 1))


@njit(nogil=True, cache=True)
def _score_rows(paired, query, stride, rows, steps, zeros, scores, b0, b1, b2, b3):
    """scores [rows][SPAN] = query [rows] x 64 packed positions."""
    width = SPAN * 4
    while rows >= 6 and rows != 7:
        _scores6(paired, query, stride, steps, zeros, scores, width, b0, b1, b2, b3)
        query, scores, rows = query + 6 * stride, scores + 6 * width, rows - 6
    if rows == 7:
        _scores4(paired, query, stride, steps, zeros, scores, width, b0, b1, b2, b3)
        query, scores, rows = query + 4 * stride, scores + 4 * width, 3
    if rows == 5:
        _scores5(paired, query, stride, steps, zeros, scores, width, b0, b1, b2, b3)
    elif rows == 4:
        _scores4(paired, query, stride, steps, zeros, scores, width, b0, b1, b2, b3)
    elif rows == 3:
        _scores3(paired, query, stride, steps, zeros, scores, width, b0, b1, b2, b3)
    elif rows == 2:
        _scores2(paired, query, stride, steps, zeros, scores, width, b0, b1, b2, b3)
    elif rows == 1:
        _scores1(paired, query, stride, steps, zeros, scores, width, b0, b1, b2, b3)


@njit(nogil=True, cache=True)
def _sum_rows(paired, weights, stride, rows, pages, count, offset, steps, block, blocks, out, out_stride):
    """out [rows][blocks * 16] += weights [rows][count * page_tokens] x the values of `count` pages."""
    done = 0
    while done + 4 <= blocks:
        left, place, rest, base = weights, out + done * 64, rows, offset + done * block
        while rest >= 6 and rest != 7:
            _sums6(paired, left, stride, pages, count, base, steps, block, place, out_stride)
            left, place, rest = left + 6 * stride, place + 6 * out_stride, rest - 6
        if rest == 7:
            _sums4(paired, left, stride, pages, count, base, steps, block, place, out_stride)
            left, place, rest = left + 4 * stride, place + 4 * out_stride, 3
        if rest == 5:
            _sums5(paired, left, stride, pages, count, base, steps, block, place, out_stride)
        elif rest == 4:
            _sums4(paired, left, stride, pages, count, base, steps, block, place, out_stride)
        elif rest == 3:
            _sums3(paired, left, stride, pages, count, base, steps, block, place, out_stride)
        elif rest == 2:
            _sums2(paired, left, stride, pages, count, base, steps, block, place, out_stride)
        elif rest == 1:
            _sums1(paired, left, stride, pages, count, base, steps, block, place, out_stride)
        done += 4
    while done < blocks:
        left, place, rest, base = weights, out + done * 64, rows, offset + done * block
        while rest >= 6:
            _sums6_narrow(paired, left, stride, pages, count, base, steps, block, place, out_stride)
            left, place, rest = left + 6 * stride, place + 6 * out_stride, rest - 6
        while rest > 0:
            _sums1_narrow(paired, left, stride, pages, count, base, steps, block, place, out_stride)
            left, place, rest = left + stride, place + out_stride, rest - 1
        done += 1


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
    sum_stride, copy_stride = value_size * 4, key_size * element
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
    for row in range(rows):
        if sinks:
            peak[row] = carray(floats_at(sinks), (head + group,))[head + row % group] * LOG2_E
            total[row] = numpy.float32(1.0)
        else:
            peak[row], total[row] = numpy.float32(HIDDEN), numpy.float32(0.0)
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
        _score_rows(paired, copied, copy_stride, rows, key_steps, zeros, scores, b0, b1, b2, b3)
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
        _sum_rows(
            paired, weights, SPAN * element, rows, pages, count, offset // pair * 64, unit // pair, value_steps * 64,
            value_size // 16, sums, sum_stride,
        )  # fmt: skip
        place += SPAN
    for row in range(rows):
        line = out + (row // group) * out_stride + (row % group) * value_size * element
        _finish(accumulated[row], numpy.float32(1.0) / total[row], line, value_size, paired)


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step's work items [items, 5] (sequence, first token, its position, tokens, first page), tables and slots."""

    work: NDArray[numpy.int64]
    tables: NDArray[numpy.int32]
    slots: NDArray[numpy.int64]
    shape: AttentionShape


class ProcessorKernel:
    """Attention on the processor in bfloat16 or float32; sums and softmax in float32."""

    name = "processor"

    def __init__(self, team: Team) -> None:
        self._team = team
        self._attend_words = numpy.zeros(ATTEND_WORDS + 1, numpy.int64)
        self._write_words = numpy.zeros(WRITE_WORDS, numpy.int64)
        self._scratch: dict[tuple[int, int], NDArray[numpy.int64]] = {}
        self._memory: list[Tensor] = []

    def supports(self, shape: AttentionShape) -> bool:
        return (
            shape.device.type == "cpu"
            and shape.dtype in (torch.bfloat16, torch.float32)
            and shape.heads % shape.kv_heads == 0
            and shape.heads // shape.kv_heads <= ITEM_ROWS
            and shape.key_size % 16 == 0
            and shape.value_size % 16 == 0
            and shape.page_tokens % 16 == 0
        )

    def prepare(self, step: GroupStep, shape: AttentionShape) -> Prepared:
        edges, starts, first_pages = step.query_starts.numpy(), step.starts.numpy(), step.first_pages.numpy()
        tokens = ITEM_ROWS // (shape.heads // shape.kv_heads)
        if step.max_query <= tokens:
            counts = edges[1:] - edges[:-1]
            columns = (numpy.arange(len(starts)), edges[:-1], starts, counts, first_pages)
            work = numpy.stack(columns, axis=1).astype(numpy.int64)
        else:
            lines = [
                (sequence, token, starts[sequence] + token - edges[sequence], min(tokens, edges[sequence + 1] - token),
                 first_pages[sequence])
                for sequence in range(len(starts))
                for token in range(edges[sequence], edges[sequence + 1], tokens)
            ]  # fmt: skip
            work = numpy.array(lines, numpy.int64)
        return Prepared(work=work, tables=step.tables.numpy(), slots=step.slots.numpy(), shape=shape)

    def write(self, key: Tensor, value: Tensor, pages: LayerPages, prepared: Prepared) -> None:
        size = key.element_size()
        key, value = _rows_contiguous(key), _rows_contiguous(value)
        words = self._write_words
        self.place_write(words, prepared.shape, pages)
        words[1:5] = key.data_ptr(), key.stride(0) * size, value.data_ptr(), value.stride(0) * size
        words[13:16] = self.write_step(prepared)
        self._team.run(write_item, words.ctypes.data, int(words[15]))

    def place_write(self, words: NDArray[numpy.int64], shape: AttentionShape, pages: LayerPages) -> None:
        """Fills a write job's words as far as they do not depend on a step: all but key, value (1:5) and 13:16."""
        size = pages.keys.element_size()
        words[0] = pages.keys.dtype == torch.bfloat16
        words[5:13] = (
            shape.kv_heads, shape.key_size, shape.value_size, shape.page_tokens, pages.keys.data_ptr(),
            pages.values.data_ptr(), pages.keys.stride(0) * size, pages.keys.stride(1) * size,
        )  # fmt: skip

    def write_step(self, prepared: Prepared) -> tuple[int, int, int]:
        """Words 13:16 of a write job: slots, tokens, items. `prepared` must outlive the job."""
        tokens = len(prepared.slots)
        return prepared.slots.ctypes.data, tokens, self._team.threads if tokens > WRITE_ALONE else 1

    def attend(
        self,
        query: Tensor,
        pages: LayerPages,
        prepared: Prepared,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        shape, size = prepared.shape, query.element_size()
        query = _rows_contiguous(query)
        out = torch.empty((query.shape[0], shape.heads, shape.value_size), dtype=query.dtype)
        extra = None if sinks is None else sinks.float().contiguous()
        words = self._attend_words
        self.place_attend(words, shape, pages, scaling, softcap or 0.0)
        words[1:5] = query.data_ptr(), query.stride(0) * size, out.data_ptr(), out.stride(0) * size
        words[15] = 0 if extra is None else extra.data_ptr()
        words[16:19] = self.attend_step(prepared)
        self._team.run(attend_item, words.ctypes.data, len(prepared.work) * shape.kv_heads)
        return out

    def place_attend(
        self, words: NDArray[numpy.int64], shape: AttentionShape, pages: LayerPages, scaling: float, softcap: float
    ) -> None:
        """Fills an attend job's words as far as they do not depend on a step: all but query, out (1:5) and 15:19."""
        size = pages.keys.element_size()
        words[0] = pages.keys.dtype == torch.bfloat16
        words[5:15] = (
            shape.heads // shape.kv_heads, shape.kv_heads, shape.key_size, shape.value_size, shape.page_tokens,
            pages.keys.data_ptr(), pages.values.data_ptr(), pages.keys.stride(0) * size, pages.keys.stride(1) * size,
            shape.window or 0,
        )  # fmt: skip
        words[19] = self._scratch_for(shape).ctypes.data
        words[ATTEND_WORDS : ATTEND_WORDS + 1].view(numpy.float32)[:] = scaling, softcap

    def attend_step(self, prepared: Prepared) -> tuple[int, int, int]:
        """Words 16:19 of an attend job: work, tables, columns. `prepared` must outlive the job."""
        return prepared.work.ctypes.data, prepared.tables.ctypes.data, prepared.tables.shape[1]

    def _scratch_for(self, shape: AttentionShape) -> NDArray[numpy.int64]:
        """Addresses [threads, 10] of each thread's working memory, kept for the kernel's life."""
        key = (shape.key_size, shape.value_size)
        if key not in self._scratch:
            sizes = (
                ITEM_ROWS * shape.key_size * 4,
                ITEM_ROWS * SPAN * 4,
                ITEM_ROWS * SPAN * 4,
                ITEM_ROWS * shape.value_size * 4,
                SPAN * 4,
                SPAN // 16 * 8,
                ITEM_ROWS * 4,
                ITEM_ROWS * 4,
                ITEM_ROWS * 4,
                12,
            )
            table = numpy.zeros((self._team.threads, len(sizes)), numpy.int64)
            for thread in range(self._team.threads):
                for column, size in enumerate(sizes):
                    # Zeros matter for the column of zeros; a page of distance keeps threads off each other's lines.
                    self._memory.append(torch.zeros(size + 4096, dtype=torch.uint8))
                    table[thread, column] = self._memory[-1].data_ptr()
            self._scratch[key] = table
        return self._scratch[key]


def _rows_contiguous(x: Tensor) -> Tensor:
    """x [T, heads, D] with each token's heads side by side; the stride between tokens may be anything."""
    if x.stride(2) == 1 and x.stride(1) == x.shape[2]:
        return x
    return x.contiguous()
