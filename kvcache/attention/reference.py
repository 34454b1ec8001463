"""The reference kernel: paged attention in plain torch on any device, a sequence at a time. Right first, fast never."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages
from quant.kv.codec import KVCodec
from quant.kv.table import CODECS


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Each sequence's token range, first position and pages, on the host; and where its K and V go."""

    ranges: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]
    first_pages: tuple[int, ...]
    tables: Tensor
    page_ids: Tensor
    offsets: Tensor
    shape: AttentionShape


class ReferenceKernel:
    """Gathers a sequence's pages, decodes them, masks by position, and computes softmax in float32."""

    name = "reference"
    order = "plain"

    def __init__(self, codecs: Mapping[str, KVCodec] = CODECS) -> None:
        """codecs: by the format's name; another table lets a format be tried without any other kernel."""
        self._codecs = codecs

    def supports(self, shape: AttentionShape) -> bool:
        return shape.heads % shape.kv_heads == 0

    def prepare(self, step: GroupStep, shape: AttentionShape) -> _Prepared:
        edges = step.query_starts.tolist()
        return _Prepared(
            ranges=tuple(pairwise(edges)),
            starts=tuple(step.starts.tolist()),
            first_pages=tuple(step.first_pages.tolist()),
            tables=step.tables.long(),
            page_ids=step.slots // shape.page_tokens,
            offsets=step.slots % shape.page_tokens,
            shape=shape,
        )

    def write(self, key: Tensor, value: Tensor | None, pages: LayerPages, prepared: _Prepared) -> None:
        formats = prepared.shape.formats
        self._store(key, formats.key.name, pages.keys, pages.key_scales, prepared)
        if value is not None and pages.values is not None:
            self._store(value, formats.value.name, pages.values, pages.value_scales, prepared)

    def _store(self, x: Tensor, name: str, pages: Tensor, scales: Tensor | None, prepared: _Prepared) -> None:
        stored, factors = self._codecs[name].encode(x)
        pages[prepared.page_ids, :, prepared.offsets] = stored.to(pages.dtype)
        if scales is not None and factors is not None:
            scales[prepared.page_ids, :, prepared.offsets] = factors

    def _positions(self, pages: Tensor, scales: Tensor | None, name: str, ids: Tensor, count: int) -> Tensor:
        """The first `count` positions of pages [pages, kv_heads, page_tokens, D]: float32 [kv_heads, count, D]."""
        factors = None if scales is None else scales[ids]
        decoded = self._codecs[name].decode(pages[ids], factors)
        return decoded.transpose(0, 1).flatten(1, 2)[:, :count]

    def attend(
        self,
        query: Tensor,
        pages: LayerPages,
        prepared: _Prepared,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        answers = [
            self._sequence(query[begin:end], pages, prepared, index, scaling, softcap, sinks)
            for index, (begin, end) in enumerate(prepared.ranges)
        ]
        return torch.cat(answers).to(query.dtype)

    def _sequence(
        self,
        query: Tensor,
        pages: LayerPages,
        prepared: _Prepared,
        index: int,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """One sequence's query [t, heads, D] -> [t, heads, Dv]."""
        shape = prepared.shape
        start, first = prepared.starts[index], prepared.first_pages[index]
        length = start + query.shape[0]
        columns = -(-length // shape.page_tokens) - first
        ids = prepared.tables[index, :columns]
        base = first * shape.page_tokens
        formats = shape.formats
        keys = self._positions(pages.keys, pages.key_scales, formats.key.name, ids, length - base)
        if pages.values is None:
            values = keys[..., : shape.value_size]
        else:
            values = self._positions(pages.values, pages.value_scales, formats.value.name, ids, length - base)
        group = shape.heads // shape.kv_heads
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        scores = torch.einsum("thd,hsd->hts", query.float(), keys) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        own = torch.arange(start, length, device=query.device)[:, None]
        seen = torch.arange(base, length, device=query.device)[None, :]
        hidden = seen > own
        if shape.window is not None:
            oldest = own // shape.window * shape.window if shape.chunked else own - shape.window + 1
            hidden |= seen < oldest
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is None:
            weights = torch.softmax(scores, -1)
        else:
            extra = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
            weights = torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]
        return torch.einsum("hts,hsd->thd", weights, values)
