"""PagedSequence: one sequence over pages of its own in one format, all of whose logits can be read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backend.batch import Batch, PageSpan, Slice
from backend.device_errors import losing_devices
from backend.paged_model import PagedModel
from backend.surgery.model import ServedModel
from kvcache.attention.kernel import AttentionKernel
from kvcache.layout import CacheGroup, build_layout
from quant.kv_format import KVFormats


class PagedSequence:
    """Feeds tokens through the model as a runner does. A position may be fed again, as long as none before it is."""

    def __init__(
        self, model: ServedModel, formats: KVFormats, kernels: tuple[AttentionKernel, ...], positions: int
    ) -> None:
        """positions: the most that will be fed. Windows release no pages, so every group has pages for all of them."""
        self._device, self._positions = model.device, positions
        self.layout = build_layout(model.facts.layers, model.dtype.itemsize, formats=formats)
        self._spans, pages = _spans(self.layout.groups, positions)
        self._paged = PagedModel(model, self.layout, pages, kernels)

    @losing_devices()
    @torch.inference_mode()
    def feed(self, start: int, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Float32 logits [len(tokens), vocabulary], or [1, vocabulary] of the last token, of tokens from `start` on."""
        # Variants of RoPE that look at a length see the same one however the text is cut into slices.
        piece = Slice(0, start, tokens, 1, self._positions, self._spans, None)
        rows = torch.arange(len(tokens) - 1 if last_only else 0, len(tokens), device=self._device)
        return self._paged.forward(Batch(0, (piece,)), rows)


def _spans(groups: tuple[CacheGroup, ...], positions: int) -> tuple[tuple[PageSpan, ...], int]:
    """Each group's pages, one group's after the other's; and how many they are."""
    spans: list[PageSpan] = []
    pages = 0
    for group in groups:
        count = -(-positions // group.page_tokens)
        spans.append(PageSpan(0, range(pages, pages + count)))
        pages += count
    return tuple(spans), pages
