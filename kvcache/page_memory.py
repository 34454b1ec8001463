"""PageMemory: the bytes of all pages on one device, and each layer's views. Which page is whose is the pool's."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcache.attention.kernel import LayerPages
from kvcache.layout import CacheGroup, CacheLayout
from quant.cpu.arena import huge_memory


class PageMemory:
    """One allocation of `pages` pages; on a processor the system backs it with memory only as pages are first used."""

    def __init__(self, layout: CacheLayout, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        if layout.element_bytes != dtype.itemsize:
            raise ValueError(f"the layout stores {layout.element_bytes} bytes an element, {dtype} has {dtype.itemsize}")
        self._elements = layout.page_bytes // layout.element_bytes
        size = pages * layout.page_bytes
        if device.type == "cpu":
            self._memory = huge_memory(size).view(dtype)
        else:
            self._memory = torch.empty(pages * self._elements, dtype=dtype, device=device)
        self.pages = pages
        self.layers: dict[int, LayerPages] = {
            slot: self._views(group, index) for group in layout.groups for index, slot in enumerate(group.slots)
        }

    @property
    def bytes(self) -> int:
        return self._memory.nbytes

    def _views(self, group: CacheGroup, index: int) -> LayerPages:
        """Views of the group's layer at `index`: the page is [kv_head][layer][keys, then values]."""
        tokens = group.page_tokens
        layer = tokens * (group.key_size + group.value_size)
        head = layer * len(group.slots)

        def view(size: int, start: int) -> Tensor:
            return self._memory.as_strided(
                (self.pages, group.kv_heads, tokens, size),
                (self._elements, head, size, 1),
                index * layer + start,
            )

        return LayerPages(view(group.key_size, 0), view(group.value_size, tokens * group.key_size))
