"""The processor kernel: attention that reads packed pages in place. Its work items are `processor_items`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages
from kvcache.attention.processor_items import ATTEND_WORDS, ITEM_ROWS, SPAN, WRITE_WORDS, attend_item, write_item
from quant.cpu.team import Team
from quant.kv_format import KVFormats

# Tokens whose K and V one thread writes faster than two would begin to.
WRITE_ALONE = 64


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
    order = "packed-16"

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
            and shape.formats == KVFormats()
            and not shape.chunked
            and not shape.latent
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

    def write(self, key: Tensor, value: Tensor | None, pages: LayerPages, prepared: Prepared) -> None:
        if value is None:
            raise ValueError("this kernel serves no latents")
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
            _address(pages.values), pages.keys.stride(0) * size, pages.keys.stride(1) * size,
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
            pages.keys.data_ptr(), _address(pages.values), pages.keys.stride(0) * size, pages.keys.stride(1) * size,
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


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _rows_contiguous(x: Tensor) -> Tensor:
    """x [T, heads, D] with each token's heads side by side; the stride between tokens may be anything."""
    if x.stride(2) == 1 and x.stride(1) == x.shape[2]:
        return x
    return x.contiguous()
