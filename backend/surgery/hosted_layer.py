"""HostedLayer: one layer's weights, side by side in host memory, and the views of a device buffer that they appear in.

When they are copied is `layer_stream`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from backend.hardware.process_memory import return_freed_memory
from backend.surgery.store import stored_tensors
from kvcache.tiers.host import HostMemory

# Where a tensor may begin: as torch's own allocator has it, which kernels count on.
ALIGNMENT = 256


class HostedLayer:
    """Finds what the layer holds when it is made; `settle` moves it, once."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._tensors = list(layer_tensors(layer))
        self._starts: list[int] = []
        self.size = 0
        for tensor in self._tensors:
            self._starts.append(self.size)
            self.size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.memory: HostMemory | None = None

    @property
    def bytes(self) -> int:
        """Of the weights themselves."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def source(self) -> Tensor:
        """All its weights, as they lie in host memory: [size] uint8."""
        if self.memory is None:
            raise RuntimeError("the layer has not been settled")
        return self.memory.tensor

    def settle(self, buffer: Tensor) -> None:
        """Moves the weights to memory that copies start from; from now on the layer computes with the buffer's bytes.

        buffer: [at least size] uint8 on the device. Whoever holds one of the tensors holds it on.
        """
        memory = HostMemory(self.size, buffer.device)
        for tensor, start in zip(self._tensors, self._starts, strict=True):
            _view(memory.tensor, start, tensor).copy_(tensor)
            tensor.data = _view(buffer, start, tensor)
        self.memory = memory
        # The weights would lie in memory twice.
        return_freed_memory()


def _view(memory: Tensor, start: int, like: Tensor) -> Tensor:
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)


def layer_tensors(layer: nn.Module) -> Iterator[Tensor]:
    """Parameters and stored weights, each once. Buffers are small, and stay."""
    seen: set[int] = set()
    for module in layer.modules():
        for tensor in (*module._parameters.values(), *stored_tensors(module)):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
