"""A hosted layer's memory: its weights side by side, the buffer's views in their place, and never all of them twice."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch import nn

from backend.surgery.hosted_layer import ALIGNMENT, HostedLayer

MIB = 1 << 20


def layer_of(count: int, *shape: int) -> nn.Module:
    tensors = [torch.full(shape, float(number)) for number in range(count)]
    return nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in tensors)


@torch.no_grad()
def test_weights_are_what_the_buffer_holds() -> None:
    layer = layer_of(3, 5, 7)
    layer.register_buffer("table", torch.ones(4))
    hosted, buffer = HostedLayer(layer), torch.zeros(4096, dtype=torch.uint8)
    parameters = list(layer.parameters())
    assert (hosted.bytes, hosted.size) == (3 * 5 * 7 * 4, 3 * ALIGNMENT)
    with pytest.raises(RuntimeError, match="settled"):
        _ = hosted.source
    hosted.settle(buffer)
    assert all(not one.any() for one in parameters), "nothing has been copied yet"
    buffer[: hosted.size].copy_(hosted.source)
    assert all(one is other for one, other in zip(parameters, layer.parameters(), strict=True))
    assert [one.unique().tolist() for one in parameters] == [[0.0], [1.0], [2.0]]
    assert layer.get_buffer("table").sum() == 4


@torch.no_grad()
def test_no_weight_lies_in_memory_twice() -> None:
    """Tensors of a size for which glibc keeps what is freed, once a larger one has been freed."""
    large = torch.ones(30 * MIB, dtype=torch.uint8)
    del large
    layers = [HostedLayer(layer_of(100, 64, 1024)) for _ in range(10)]  # 25 MiB each
    buffer = torch.ones(layers[0].size, dtype=torch.uint8)
    before = most = psutil.Process().memory_info().rss
    for layer in layers:
        layer.settle(buffer)
        most = max(most, psutil.Process().memory_info().rss)
    assert most - before < 100 * MIB < sum(layer.size for layer in layers) / 2
