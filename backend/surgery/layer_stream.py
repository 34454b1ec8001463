"""LayerStream: brings the weights of layers that lie in host memory to the device, ahead of their turn.

Two buffers take turns, each with a ring of layers of its own: as soon as a layer has computed, the next one of its
ring is copied over it, while the layers in between compute. accelerate's AlignDevicesHook would copy a layer's weights
when its turn has come, and have everything wait; its hooks around a layer are what is used of it here.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from backend.planner.hosted import BUFFERS
from backend.surgery.hosted_layer import HostedLayer
from backend.surgery.model import ServedModel
from backend.surgery.store import held_bytes
from backend.surgery.weight_lane import WeightLane, weight_lane_of
from kvcache.tiers.host import HostMemory


class LayerStream:
    """Layers by their number in the order of their turns; number n uses buffer n % 2.

    Called in another order, a layer's weights are copied when its turn has come: slower, and as right.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, lane: WeightLane) -> None:
        self._layers, self._lane = [HostedLayer(layer) for layer in layers], lane
        rings = [self._layers[buffer::BUFFERS] for buffer in range(BUFFERS)]
        sizes = [max((layer.size for layer in ring), default=0) for ring in rings]
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
        self._held: list[int | None] = [None] * BUFFERS
        for number, layer in enumerate(self._layers):
            layer.settle(self._buffers[number % BUFFERS])
        memories = [layer.memory for layer in self._layers if layer.memory is not None]
        # At the process' end the system takes it all; CUDA may be gone by then.
        weakref.finalize(self, _give_back, lane, memories).atexit = False
        for number in range(min(BUFFERS, len(self._layers))):
            self._bring(number)

    @property
    def host_bytes(self) -> int:
        """Weights in host memory."""
        return sum(layer.bytes for layer in self._layers)

    @property
    def device_bytes(self) -> int:
        """What the buffers take."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def begin(self, number: int) -> None:
        """The layer's turn has come: what is computed from now on finds its weights."""
        if self._held[number % BUFFERS] != number:
            self._bring(number)
        self._lane.arrive(number % BUFFERS)

    def end(self, number: int) -> None:
        """The layer has had its turn: the next of its ring comes in its place."""
        following = number + BUFFERS
        if following >= len(self._layers):
            following = number % BUFFERS
        if following != number:
            self._bring(following)

    def _bring(self, number: int) -> None:
        buffer, source = number % BUFFERS, self._layers[number].source
        self._held[buffer] = None
        self._lane.leave(buffer)
        self._lane.copy(buffer, source, self._buffers[buffer][: source.nbytes])
        self._held[buffer] = number


class _Turn(ModelHook):
    """Tells the stream of one layer's turns."""

    def __init__(self, stream: LayerStream, number: int) -> None:
        self._stream, self._number = stream, number

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._stream.begin(self._number)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self._stream.end(self._number)
        return output


@torch.no_grad()
def stream_layers(model: ServedModel, lane: WeightLane | None = None) -> ServedModel:
    """The same model, its hosted layers streamed from now on; `weights_bytes` are then those on the device.

    The model must not be used while this runs, and its modules are changed in place.
    """
    layers = [model.module.get_submodule(path) for path in model.hosted]
    stream = LayerStream(layers, model.device, lane or weight_lane_of(model.device))
    for number, layer in enumerate(layers):
        add_hook_to_module(layer, _Turn(stream, number))
    weights = held_bytes(model.module) - stream.host_bytes + stream.device_bytes
    return replace(model, weights_bytes=weights, stream_bytes=stream.device_bytes)


def _give_back(lane: WeightLane, memories: Sequence[HostMemory]) -> None:
    lane.finish()
    for memory in memories:
        memory.close()
