"""The processor kernel: attention that reads packed pages in place. Its work is planned by `processor_work`, its jobs
are `processor_write`, `processor_items` and `processor_merge`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvcache.attention import processor_words as at
from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages, rows_contiguous
from kvcache.attention.processor_items import PARTIAL_EXTRA, attend_item
from kvcache.attention.processor_merge import merge_item
from kvcache.attention.processor_span import scratch_sizes
from kvcache.attention.processor_work import SPAN, Work, plan_work
from kvcache.attention.processor_write import write_item
from quant.cpu.codes import FP8_CODES, INT8_CODES, PLAIN
from quant.cpu.team import Team
from quant.kv_format import FP8, INT8, MODEL

# Tokens whose K and V one thread writes faster than two would begin to.
WRITE_ALONE = 64
KINDS = {MODEL.name: PLAIN, INT8.name: INT8_CODES, FP8.name: FP8_CODES}
STEP = slice(at.STEP, at.WORDS)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step's work, tables [S, P] and slots [T], and memory for its partial results; outlives the step's jobs."""

    work: Work
    tables: NDArray[numpy.int32]
    slots: NDArray[numpy.int64]
    partials: Tensor
    shape: AttentionShape


@dataclass(frozen=True, slots=True)
class StepWords:
    """What a job's words are from `at.STEP` on in this step, and how many items it has."""

    words: tuple[int, ...]
    items: int


class ProcessorKernel:
    """Attention on the processor in bfloat16 or float32, over pages of any format; sums and softmax in float32.

    The inner order of a page follows from the model's type and the formats, which a page's key names beside `order`.
    """

    name = "processor"
    order = "packed-16"

    def __init__(self, team: Team) -> None:
        self._team = team
        self._words = numpy.zeros(at.WORDS, numpy.int64)
        self._scratch: dict[tuple[int, int], NDArray[numpy.int64]] = {}
        self._memory: list[Tensor] = []
        self._partials = torch.empty(0)

    def supports(self, shape: AttentionShape) -> bool:
        return (
            shape.device.type == "cpu"
            and shape.dtype in (torch.bfloat16, torch.float32)
            and {shape.formats.key.name, shape.formats.value.name} <= KINDS.keys()
            and shape.heads % shape.kv_heads == 0
            and shape.key_size % 16 == 0
            and shape.value_size % 16 == 0
            and shape.page_tokens >= 16
            and shape.page_tokens.bit_count() == 1
        )

    def prepare(self, step: GroupStep, shape: AttentionShape) -> Prepared:
        work = plan_work(step, shape, self._team.threads)
        size = work.partials * shape.heads * (shape.value_size + PARTIAL_EXTRA)
        if self._partials.numel() < size:
            self._partials = torch.empty(size)
        return Prepared(work, step.tables.numpy(), step.slots.numpy(), self._partials, shape)

    def write(self, key: Tensor, value: Tensor | None, pages: LayerPages, prepared: Prepared) -> None:
        key, value = rows_contiguous(key), None if value is None else rows_contiguous(value)
        words = self._words
        self.place(words, prepared.shape, pages)
        words[1:5] = *_rows(key), *((0, 0) if value is None else _rows(value))
        self._run(write_item, self.write_step(prepared))

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
        shape, words = prepared.shape, self._words
        query = rows_contiguous(query)
        out = torch.empty((query.shape[0], shape.heads, shape.value_size), dtype=query.dtype)
        extra = None if sinks is None else sinks.float().contiguous()
        self.place(words, shape, pages, scaling, softcap or 0.0)
        words[1:5] = *_rows(query), *_rows(out)
        words[at.SINKS] = _address(extra)
        self._run(attend_item, self.attend_step(prepared))
        self._run(merge_item, self.merge_step(prepared))
        return out

    def _run(self, function: object, step: StepWords) -> None:
        self._words[STEP] = step.words
        self._team.run(function, self._words.ctypes.data, step.items)

    def place(
        self,
        words: NDArray[numpy.int64],
        shape: AttentionShape,
        pages: LayerPages,
        scaling: float = 1.0,
        softcap: float = 0.0,
    ) -> None:
        """Fills any job's words as far as they do not depend on a step: all but 1:5 (in and out), sinks and STEP."""
        words[at.PAIRED] = shape.dtype == torch.bfloat16
        words[at.GROUP : at.KEYS] = (
            shape.heads // shape.kv_heads, shape.kv_heads, shape.key_size, shape.value_size, shape.page_tokens,
            KINDS[shape.formats.key.name], KINDS[shape.formats.value.name],
        )  # fmt: skip
        words[at.KEYS : at.WINDOW] = (
            *_block(pages.keys), *_block(pages.values), *_block(pages.key_scales), *_block(pages.value_scales)
        )  # fmt: skip
        words[at.WINDOW : at.NUMBERS] = (
            shape.window or 0, shape.chunked, 0, self._scratch_for(shape).ctypes.data,
            shape.page_tokens.bit_length() - 1, min(shape.page_tokens, SPAN),
        )  # fmt: skip
        words[at.NUMBERS : at.NUMBERS + 1].view(numpy.float32)[:] = scaling, softcap

    def write_step(self, prepared: Prepared) -> StepWords:
        tokens = len(prepared.slots)
        items = self._team.threads if tokens > WRITE_ALONE else 1
        return StepWords((prepared.slots.ctypes.data, tokens, items, 0, 0, 0), items)

    def attend_step(self, prepared: Prepared) -> StepWords:
        work, tables = prepared.work, prepared.tables
        places = (work.lines, work.members, work.positions, tables)
        words = (*(place.ctypes.data for place in places), tables.shape[1], prepared.partials.data_ptr())
        return StepWords(words, len(work.lines) * prepared.shape.kv_heads)

    def merge_step(self, prepared: Prepared) -> StepWords:
        work = prepared.work
        places = tuple(place.ctypes.data for place in (work.merged, work.edges, work.parts))
        return StepWords((*places, 0, 0, prepared.partials.data_ptr()), len(work.merged))

    def _scratch_for(self, shape: AttentionShape) -> NDArray[numpy.int64]:
        """Addresses [threads, SCRATCH_WORDS] of each thread's working memory, kept for the kernel's life."""
        key = (shape.key_size, shape.value_size)
        if key not in self._scratch:
            self._memory.append(torch.ones(SPAN))
            ones = self._memory[-1].data_ptr()
            sizes = scratch_sizes(*key)
            table = numpy.zeros((self._team.threads, len(sizes)), numpy.int64)
            for thread in range(self._team.threads):
                table[thread] = [self._scratch_part(size) if size else ones for size in sizes]
            self._scratch[key] = table
        return self._scratch[key]

    def _scratch_part(self, size: int) -> int:
        # Zeros matter for the column of zeros; a page of distance keeps threads off each other's lines.
        self._memory.append(torch.zeros(size + 4096, dtype=torch.uint8))
        return self._memory[-1].data_ptr()


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _rows(x: Tensor) -> tuple[int, int]:
    """Where x [T, heads, D] begins, and the bytes from token to token."""
    return x.data_ptr(), x.stride(0) * x.element_size()


def _block(x: Tensor | None) -> tuple[int, int, int]:
    """Where pages [pages, kv_heads, ..] begin, and the bytes from page to page and from head to head."""
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0) * x.element_size(), x.stride(1) * x.element_size())
