"""PagedSequence: one sequence over pages of its own in one format, all of whose logits can be read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backend.batch import Batch, PageSpan, Slice
from backend.device_errors import losing_devices
from backend.paged_context import PagedContext
from backend.step_inputs import step_inputs
from backend.surgery.model import ServedModel
from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.table import choose_kernel
from kvcache.layout import CacheGroup, Keeps, build_layout
from kvcache.page_memory import PageMemory
from quant.kv_format import KVFormats


class PagedSequence:
    """Feeds tokens through the model as a runner does. A position may be fed again, as long as none before it is."""

    def __init__(
        self, model: ServedModel, formats: KVFormats, kernels: tuple[AttentionKernel, ...], positions: int
    ) -> None:
        """positions: the most that will be fed. Windows release no pages, so every group has pages for all of them."""
        self._model, self._positions = model, positions
        self.layout = build_layout(model.facts.layers, model.dtype.itemsize, formats=formats)
        self._spans, pages = _spans(self.layout.groups, positions)
        self._memory = PageMemory(self.layout, pages, model.dtype, model.device)
        self._kernels: dict[int, AttentionKernel] = {}
        self._kinds: list[tuple[int, AttentionShape, AttentionKernel]] = []
        self._kind_of: dict[int, int] = {}
        places: dict[tuple[int, AttentionShape], int] = {}
        for index, group in enumerate(self.layout.groups):
            for slot in group.slots:
                shape = attention_shape(model, group, slot, formats)
                kernel = self._kernels[slot] = choose_kernel(kernels, shape)
                place = self._kind_of[slot] = places.setdefault((index, shape), len(self._kinds))
                if place == len(self._kinds):
                    self._kinds.append((index, shape, kernel))

    @losing_devices()
    @torch.inference_mode()
    def feed(self, start: int, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Float32 logits [len(tokens), vocabulary], or [1, vocabulary] of the last token, of tokens from `start` on."""
        # Variants of RoPE that look at a length see the same one however the text is cut into slices.
        piece = Slice(0, start, tokens, 1, self._positions, self._spans, None)
        whole_length = bool(self._model.recompute_lengths)
        inputs = step_inputs(Batch(0, (piece,)), self.layout, whole_length=whole_length, device=self._model.device)
        prepared = tuple(kernel.prepare(inputs.groups[group], shape) for group, shape, kernel in self._kinds)
        context = PagedContext(self._memory.layers, self._kernels, self._kind_of, prepared)
        rows = torch.arange(len(tokens) - 1 if last_only else 0, len(tokens), device=self._model.device)
        return self._model.forward(inputs.tokens, inputs.positions, inputs.rope_lengths, rows, context)


def _spans(groups: tuple[CacheGroup, ...], positions: int) -> tuple[tuple[PageSpan, ...], int]:
    """Each group's pages, one group's after the other's; and how many they are."""
    spans: list[PageSpan] = []
    pages = 0
    for group in groups:
        count = -(-positions // group.page_tokens)
        spans.append(PageSpan(0, range(pages, pages + count)))
        pages += count
    return tuple(spans), pages


def attention_shape(model: ServedModel, group: CacheGroup, slot: int, formats: KVFormats) -> AttentionShape:
    """What a kernel must know of the layer at `slot`."""
    return AttentionShape(
        heads=model.facts.heads[slot],
        kv_heads=group.layer.kv_heads,
        key_size=group.layer.key_size,
        value_size=group.layer.value_size,
        page_tokens=group.page_tokens,
        window=group.window,
        dtype=model.dtype,
        device=model.device,
        chunked=group.chunked,
        latent=group.layer.keeps is Keeps.LATENT,
        formats=formats,
    )
