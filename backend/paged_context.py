"""PagedContext: the AttentionContext of one pass over pages; made by the runner, read in place by fused stacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kvcache.attention.kernel import AttentionKernel, LayerPages


class PagedContext:
    """Writes a layer's K and V where the step says, then attends over the pages.

    Attributes:
        layers, kernels: each slot's pages and kernel; the same objects in every pass of a runner.
        kinds: each slot's place in `prepared`: slots of one cache group and shape share what their kernel prepared.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerPages],
        kernels: Mapping[int, AttentionKernel],
        kinds: Mapping[int, int],
        prepared: tuple[Any, ...],
    ) -> None:
        self.layers, self.kernels, self.kinds, self.prepared = layers, kernels, kinds, prepared

    def attend(
        self,
        slot: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        pages, kernel, prepared = self.layers[slot], self.kernels[slot], self.prepared[self.kinds[slot]]
        kernel.write(key, value, pages, prepared)
        return kernel.attend(query, pages, prepared, scaling=scaling, softcap=softcap, sinks=sinks)
