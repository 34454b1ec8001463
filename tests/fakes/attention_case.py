"""Cases of paged attention: scattered pages, several sequences, chunks; run on any kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionKernel, AttentionShape, GroupStep, LayerPages


@dataclass(frozen=True)
class AttentionCase:
    """`chunks[i]` is (positions already in the cache, new tokens) of sequence i."""

    shape: AttentionShape
    chunks: tuple[tuple[int, int], ...]
    softcap: float | None = None
    sinks: bool = False
    seed: int = 0

    def run(self, kernel: AttentionKernel) -> Tensor:
        """Fills fresh pages (full of NaN before) in two steps and returns the second step's answers, in float32."""
        shape, random = self.shape, torch.Generator().manual_seed(self.seed)
        columns = max(-(-(past + new) // shape.page_tokens) for past, new in self.chunks)
        pages = columns * len(self.chunks) + 1
        tables = torch.randperm(pages, generator=random)[: pages - 1].view(len(self.chunks), columns).int()
        memory = self._fresh_pages(pages)
        sinks = torch.randn(shape.heads, generator=random) if self.sinks else None
        answer = torch.empty(0)
        for ranges in ([(0, past) for past, _ in self.chunks], [(past, past + new) for past, new in self.chunks]):
            step = self._step(ranges, tables)
            total = int(step.query_starts[-1])
            query, key, value = (
                torch.randn(total, heads, size, generator=random).to(shape.dtype)
                for heads, size in (
                    (shape.heads, shape.key_size),
                    (shape.kv_heads, shape.key_size),
                    (shape.kv_heads, shape.value_size),
                )
            )
            if total:
                prepared = kernel.prepare(step, shape)
                kernel.write(key, value, memory, prepared)
                answer = kernel.attend(
                    query, memory, prepared, scaling=shape.key_size**-0.5, softcap=self.softcap, sinks=sinks
                )
        return answer.float()

    def _fresh_pages(self, pages: int) -> LayerPages:
        shape = self.shape
        keys, values = shape.page_tokens * shape.key_size, shape.page_tokens * shape.value_size
        memory = torch.full((pages, shape.kv_heads, keys + values), float("nan"), dtype=shape.dtype)
        return LayerPages(
            memory[:, :, :keys].unflatten(2, (shape.page_tokens, shape.key_size)),
            memory[:, :, keys:].unflatten(2, (shape.page_tokens, shape.value_size)),
        )

    def _step(self, ranges: list[tuple[int, int]], tables: Tensor) -> GroupStep:
        """The step that computes positions [begin, end) of each sequence; pages behind the window are not in it."""
        size, window = self.shape.page_tokens, self.shape.window
        kept = [(i, begin, end) for i, (begin, end) in enumerate(ranges) if end > begin]
        first = [0 if window is None else max(0, begin - window + 1) // size for _, begin, _ in kept]
        shown = torch.zeros(len(kept), tables.shape[1], dtype=torch.int32)
        for row, ((i, _, _), page) in enumerate(zip(kept, first, strict=True)):
            shown[row, : tables.shape[1] - page] = tables[i, page:]
        slots = [int(tables[i, p // size]) * size + p % size for i, begin, end in kept for p in range(begin, end)]
        counts = torch.tensor([0, *(end - begin for _, begin, end in kept)])
        return GroupStep(
            query_starts=counts.cumsum(0).int(),
            starts=torch.tensor([begin for _, begin, _ in kept], dtype=torch.int32),
            tables=shown,
            first_pages=torch.tensor(first, dtype=torch.int32),
            slots=torch.tensor(slots, dtype=torch.int64),
            max_query=int(counts.max()),
            max_length=max((end for _, _, end in kept), default=0),
        )
