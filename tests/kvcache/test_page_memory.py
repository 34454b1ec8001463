"""The layers' views and the pages' bytes are the same memory, wherever in its allocation that begins."""

from __future__ import annotations

import torch

from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from quant.kv_format import INT8, MODEL, KVFormats


def test_a_page_holds_what_its_layers_write_there_and_nothing_else() -> None:
    layers = (LayerCache(Keeps.FULL, None, 2, 16, 16), LayerCache(Keeps.FULL, None, 2, 16, 16))
    layout = build_layout(layers, 4, 4, KVFormats(INT8, MODEL))
    memory = PageMemory(layout, 3, torch.float32, torch.device("cpu"))
    blocks = layout.blocks(layout.groups[0])
    written = memory.layers[1]
    written.keys[1, 1] = 5
    assert written.values is not None
    written.values[1, 1] = 1.0
    written.key_scales[1, 1] = 2.0  # pyright: ignore[reportOptionalSubscript]
    assert not memory.page(0).any()
    assert not memory.page(2).any()
    head = memory.page(1)[layout.head_bytes(layout.groups[0]) :]
    layer = head[blocks.bytes : 2 * blocks.bytes]
    assert memory.page(1).count_nonzero() == layer.count_nonzero()
    assert (layer[blocks.keys : blocks.values] == 5).all()
    assert (layer[blocks.values : blocks.key_scales].view(torch.float32) == 1.0).all()
    assert (layer[blocks.key_scales : blocks.value_scales].view(torch.bfloat16) == 2.0).all()
