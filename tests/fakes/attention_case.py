"""Cases of paged attention: scattered pages, several sequences, chunks; run on any kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionKernel, AttentionShape, GroupStep, LayerPages
from kvcache.layout import oldest_seen
from quant.kv.table import CODECS
from quant.kv_format import KVFormat


@dataclass(frozen=True)
class AttentionCase:
    """`chunks[i]` is (positions already in the cache, new tokens) of sequence i.

    `shared` pages at the beginning of each table are those of the first sequence; all have them in the cache.
    """

    shape: AttentionShape
    chunks: tuple[tuple[int, int], ...]
    softcap: float | None = None
    sinks: bool = False
    seed: int = 0
    shared: int = 0

    def run(self, kernel: AttentionKernel) -> Tensor:
        """Fills fresh pages (full of NaN before) and returns the answers of the chunks' new tokens, in float32."""
        shape, random = self.shape, torch.Generator().manual_seed(self.seed)
        columns = max(-(-(past + new) // shape.page_tokens) for past, new in self.chunks)
        pages = columns * len(self.chunks) + 1
        tables = torch.randperm(pages, generator=random)[: pages - 1].view(len(self.chunks), columns).int()
        tables[:, : self.shared] = tables[0, : self.shared]
        memory = self.fresh_pages(pages)
        sinks = torch.randn(shape.heads, generator=random).to(shape.device) if self.sinks else None
        answer = torch.empty(0)
        for ranges in self._steps():
            step = self.step(ranges, tables)
            total = int(step.query_starts[-1])
            query, key, value = (
                torch.randn(total, heads, size, generator=random).to(shape.device, shape.dtype)
                for heads, size in (
                    (shape.heads, shape.key_size),
                    (shape.kv_heads, shape.key_size),
                    (shape.kv_heads, shape.value_size),
                )
            )
            if total:
                prepared = kernel.prepare(step, shape)
                kernel.write(key, None if shape.latent else value, memory, prepared)
                answer = kernel.attend(
                    query, memory, prepared, scaling=shape.key_size**-0.5, softcap=self.softcap, sinks=sinks
                )
        return answer.float().cpu()

    def _steps(self) -> list[list[tuple[int, int]]]:
        """The positions [begin, end) that each sequence computes, step by step: what is shared comes first."""
        known = self.shared * self.shape.page_tokens
        past, new = [(known, past) for past, _ in self.chunks], [(past, past + new) for past, new in self.chunks]
        return [[(0, known)] + [(0, 0)] * (len(past) - 1), past, new]

    def fresh_pages(self, pages: int) -> LayerPages:
        shape = self.shape
        blocks = [(shape.formats.key, shape.key_size)]
        if not shape.latent:
            blocks.append((shape.formats.value, shape.value_size))
        size = shape.page_tokens * sum(one.row_bytes(width, shape.dtype.itemsize) for one, width in blocks)
        # All bits set are a NaN in every type but int8.
        memory = torch.full((pages, shape.kv_heads, size), 0xFF, dtype=torch.uint8, device=shape.device)
        keys, *values = self._views(memory, blocks)
        return LayerPages(keys[0], values[0][0] if values else None, keys[1], values[0][1] if values else None)

    def _views(self, memory: Tensor, blocks: list[tuple[KVFormat, int]]) -> list[tuple[Tensor, Tensor | None]]:
        """Elements and scales of each block: elements of all blocks come before their scales."""
        shape, edge, views = self.shape, 0, []
        for one, width in blocks:
            size = shape.page_tokens * width * one.element_bytes(shape.dtype.itemsize)
            plain = memory[:, :, edge : edge + size].view(CODECS[one.name].dtype(shape.dtype))
            views.append((plain.unflatten(2, (shape.page_tokens, width)), None))
            edge += size
        for index, (one, _) in enumerate(blocks):
            size = shape.page_tokens * one.scale_bytes
            if size:
                views[index] = (views[index][0], memory[:, :, edge : edge + size].view(torch.bfloat16))
            edge += size
        return views

    def step(self, ranges: list[tuple[int, int]], tables: Tensor) -> GroupStep:
        """The step that computes positions [begin, end) of each sequence; pages behind the window are not in it."""
        size, window, chunked = self.shape.page_tokens, self.shape.window, self.shape.chunked
        kept = [(i, begin, end) for i, (begin, end) in enumerate(ranges) if end > begin]
        first = [oldest_seen(begin, window, chunked) // size for _, begin, _ in kept]
        shown = torch.zeros(len(kept), tables.shape[1], dtype=torch.int32)
        for row, ((i, _, _), page) in enumerate(zip(kept, first, strict=True)):
            shown[row, : tables.shape[1] - page] = tables[i, page:]
        slots = [int(tables[i, p // size]) * size + p % size for i, begin, end in kept for p in range(begin, end)]
        counts = torch.tensor([0, *(end - begin for _, begin, end in kept)])
        device = self.shape.device
        return GroupStep(
            query_starts=counts.cumsum(0).int().to(device),
            starts=torch.tensor([begin for _, begin, _ in kept], dtype=torch.int32, device=device),
            tables=shown.to(device),
            first_pages=torch.tensor(first, dtype=torch.int32, device=device),
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            max_query=int(counts.max()),
            max_length=max((end for _, _, end in kept), default=0),
        )
