"""TritonKernel: paged attention on a CUDA device. It counts launches; the arithmetic is in the modules beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages, rows_contiguous
from kvcache.attention.triton_attend import attend_kernel
from kvcache.attention.triton_card import Card
from kvcache.attention.triton_configuration import Configuration, configuration_of
from kvcache.attention.triton_launch import attend_arguments, merge_arguments
from kvcache.attention.triton_merge import merge_kernel
from kvcache.attention.triton_parts import Part, parts_of
from kvcache.attention.triton_write import write_pages
from quant.kv_format import KV_FORMATS

LARGEST_HEAD = 256
LARGEST_LATENT = 576


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step, and the one or two launches that serve it. Nothing of it was read back from the device."""

    step: GroupStep
    shape: AttentionShape
    parts: tuple[Part, ...]


class TritonKernel:
    """Reads and writes pages of every format in the reference's order, so both read each other's.

    `write` and `attend` launch on the current stream and never wait for the device: they may be captured in a graph.
    """

    name = "triton"
    order = "plain"

    def __init__(self, card: Card) -> None:
        self._card = card

    def supports(self, shape: AttentionShape) -> bool:
        largest = max(shape.key_size, shape.value_size)
        formats = (shape.formats.key, shape.formats.value)
        return (
            shape.device.type == self._card.kind
            and self._card.capability >= (8, 0)
            and shape.dtype in (torch.float16, torch.bfloat16, torch.float32)
            and all(KV_FORMATS.get(one.name) == one for one in formats)
            and shape.heads % shape.kv_heads == 0
            and shape.page_tokens & (shape.page_tokens - 1) == 0
            and largest <= (LARGEST_LATENT if shape.latent else LARGEST_HEAD)
            and not (shape.latent and shape.value_size > 512)
        )

    def prepare(self, step: GroupStep, shape: AttentionShape) -> Prepared:
        decode, prefill = self.configuration("decode", shape), self.configuration("prefill", shape)
        return Prepared(step, shape, parts_of(step, shape, decode, prefill, self._card.processors))

    def configuration(self, step: str, shape: AttentionShape) -> Configuration:
        """The block sizes of `decode` or `prefill` for such a layer."""
        size = max(shape.key_size, shape.value_size)
        formats = (shape.formats.key,) if shape.latent else (shape.formats.key, shape.formats.value)
        element_bytes = max(one.element_bytes(shape.dtype.itemsize) for one in formats)
        # What a float32 model multiplies is float32, however small it is stored.
        element_bytes = 4 if shape.dtype == torch.float32 else element_bytes
        return configuration_of(self._card.architecture, step, size, shape.latent, element_bytes)

    def write(self, key: Tensor, value: Tensor | None, pages: LayerPages, prepared: Prepared) -> None:
        shape = prepared.shape
        formats = (shape.formats.key.name, shape.formats.value.name)
        value = None if value is None or pages.values is None else rows_contiguous(value)
        write_pages(rows_contiguous(key), value, pages, prepared.step.slots, shape.page_tokens, formats)

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
        step, shape = prepared.step, prepared.shape
        query = rows_contiguous(query)
        out = query.new_empty((query.shape[0], shape.heads, shape.value_size))
        for part in prepared.parts:
            grid = (part.tiles, shape.kv_heads, part.splits)
            arguments = attend_arguments(query, out, pages, step, shape, part, self._card, scaling, softcap, sinks)
            used = part.configuration
            options: dict[str, Any] = {"num_warps": used.warps, "num_stages": used.stages}
            attend_kernel[grid](**arguments, **options)
            if part.splits > 1:
                rows = (part.tiles, shape.kv_heads, used.rows)
                merge_kernel[rows](**merge_arguments(out, step, shape, part, sinks))
        return out
