"""PageMemory: the bytes of all pages on one device, and each layer's views. Which page is whose is the pool's."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcache.attention.kernel import LayerPages
from kvcache.layout import CacheGroup, CacheLayout
from quant.cpu.arena import huge_memory
from quant.kv.table import CODECS


class PageMemory:
    """One allocation of `pages` pages; on a processor the system backs it with memory only as pages are first used."""

    def __init__(self, layout: CacheLayout, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        """dtype: the model's own type."""
        if layout.model_bytes != dtype.itemsize:
            raise ValueError(f"the layout stores {layout.model_bytes} bytes an element, {dtype} has {dtype.itemsize}")
        self._layout, self._dtype = layout, dtype
        size = pages * layout.page_bytes
        if device.type == "cpu":
            self._memory = huge_memory(size)
        else:
            self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.pages = pages
        self.layers: dict[int, LayerPages] = {
            slot: self._views(group, index) for group in layout.groups for index, slot in enumerate(group.slots)
        }

    @property
    def bytes(self) -> int:
        return self._memory.nbytes

    @property
    def all(self) -> Tensor:
        """All bytes of all pages: [bytes] uint8."""
        return self._memory

    def page(self, index: int) -> Tensor:
        """All bytes of one page: [page_bytes] uint8, a view."""
        size = self._layout.page_bytes
        return self._memory[index * size : (index + 1) * size]

    def _views(self, group: CacheGroup, index: int) -> LayerPages:
        """Views of the group's layer at `index`: the page is [kv_head][layer][keys, values, their scales]."""
        layer, formats, blocks = group.layer, self._layout.formats, self._layout.blocks(group)
        first = index * blocks.bytes
        key, value = (CODECS[one.name].dtype(self._dtype) for one in (formats.key, formats.value))
        keys = self._view(group, key, first + blocks.keys, layer.key_size)
        key_scales = self._scales(group, first + blocks.key_scales) if formats.key.scale_bytes else None
        if not layer.stored_values:
            return LayerPages(keys, None, key_scales)
        values = self._view(group, value, first + blocks.values, layer.value_size)
        value_scales = self._scales(group, first + blocks.value_scales) if formats.value.scale_bytes else None
        return LayerPages(keys, values, key_scales, value_scales)

    def _view(self, group: CacheGroup, dtype: torch.dtype, start: int, size: int) -> Tensor:
        """[pages, kv_heads, page_tokens, size] of this type, from `start` bytes into each page's first head on."""
        element, memory = dtype.itemsize, self._memory.view(dtype)
        return memory.as_strided(
            (self.pages, group.layer.kv_heads, group.page_tokens, size),
            (self._layout.page_bytes // element, self._layout.head_bytes(group) // element, size, 1),
            memory.storage_offset() + start // element,
        )

    def _scales(self, group: CacheGroup, start: int) -> Tensor:
        return self._view(group, torch.bfloat16, start, 1).squeeze(-1)
