"""PagedModel: a model with the pages that its attention writes and reads. Whose a page is, others know."""

from __future__ import annotations

from torch import Tensor

from backend.batch import Batch
from backend.paged_context import PagedContext
from backend.step_inputs import step_inputs
from backend.surgery.model import ServedModel
from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.table import choose_kernel
from kvcache.layout import CacheGroup, CacheLayout, Keeps
from kvcache.page_memory import PageMemory


class PagedModel:
    """Computes batches over pages of one layout. `memory` holds their bytes."""

    def __init__(
        self, model: ServedModel, layout: CacheLayout, pages: int, kernels: tuple[AttentionKernel, ...]
    ) -> None:
        """kernels: to choose from for each layer, the fastest first."""
        self.memory = PageMemory(layout, pages, model.dtype, model.device)
        self._model, self._layout = model, layout
        self._kernels: dict[int, AttentionKernel] = {}
        # Slots of one group and shape share what their kernel prepares of a step.
        self._kinds: list[tuple[int, AttentionShape, AttentionKernel]] = []
        self._kind_of: dict[int, int] = {}
        places: dict[tuple[int, AttentionShape], int] = {}
        for index, group in enumerate(layout.groups):
            for slot in group.slots:
                shape = _shape(model, layout, group, slot)
                kernel = self._kernels[slot] = choose_kernel(kernels, shape)
                place = self._kind_of[slot] = places.setdefault((index, shape), len(self._kinds))
                if place == len(self._kinds):
                    self._kinds.append((index, shape, kernel))

    @property
    def kernel_orders(self) -> tuple[str, ...]:
        """The inner order of each slot's pages, which is part of what a cached page's bytes mean."""
        return tuple(self._kernels[slot].order for slot in sorted(self._kernels))

    def forward(self, batch: Batch, rows: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Feeds every slice and writes its K and V: float32 logits [rows, vocabulary], or hidden states of all tokens.

        rows: flat indices of the tokens whose logits are wanted; None for those that the batch's slices sample from.
        hidden [T, columns]: for a stage, as in `ServedModel.forward`.
        """
        whole_length = bool(self._model.recompute_lengths)
        inputs = step_inputs(batch, self._layout, whole_length=whole_length, device=self._model.device)
        prepared = tuple(kernel.prepare(inputs.groups[group], shape) for group, shape, kernel in self._kinds)
        context = PagedContext(self.memory.layers, self._kernels, self._kind_of, prepared)
        rows = inputs.rows if rows is None else rows
        return self._model.forward(inputs.tokens, inputs.positions, inputs.rope_lengths, rows, context, hidden)


def _shape(model: ServedModel, layout: CacheLayout, group: CacheGroup, slot: int) -> AttentionShape:
    layer = group.layer
    return AttentionShape(
        heads=model.facts.heads[slot],
        kv_heads=layer.kv_heads,
        key_size=layer.key_size,
        value_size=layer.value_size,
        page_tokens=group.page_tokens,
        window=group.window,
        dtype=model.dtype,
        device=model.device,
        chunked=group.chunked,
        latent=layer.keeps is Keeps.LATENT,
        formats=layout.formats,
    )
