"""HostTier: the slots of host memory that pages are offloaded to. Which slot holds what is CacheManager's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant.cpu.arena import huge_memory


class HostTier:
    """`slots` pages of `page_bytes` in one allocation, which the system backs as slots are first used."""

    def __init__(self, slots: int, page_bytes: int, device: torch.device) -> None:
        """device: whose pages these are; for CUDA the memory is pinned, so that copies run beside compute."""
        self.slots, self.page_bytes = slots, page_bytes
        self._memory = HostMemory(slots * page_bytes, device)

    @property
    def bytes(self) -> int:
        return self.slots * self.page_bytes

    @property
    def all(self) -> Tensor:
        """All bytes of all slots: [bytes] uint8."""
        return self._memory.tensor

    def page(self, index: int) -> Tensor:
        """All bytes of one slot: [page_bytes] uint8, a view."""
        return self._memory.tensor[index * self.page_bytes : (index + 1) * self.page_bytes]

    def close(self) -> None:
        """Gives the memory back; no call follows."""
        self._memory.close()


class HostMemory:
    """Memory in huge pages, pinned where the device is a CUDA one.

    It is registered rather than taken from torch's own pool of pinned memory, which rounds sizes up to powers of two.
    Where the driver declines, it stays pageable: copies are then right, and slower.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.tensor = huge_memory(size)
        self.pinned = device.type == "cuda" and size > 0 and _register(self.tensor)

    def close(self) -> None:
        if self.pinned:
            runtime: Any = torch.cuda.cudart()
            runtime.cudaHostUnregister(self.tensor.data_ptr())
            self.pinned = False


def _register(memory: Tensor) -> bool:
    runtime: Any = torch.cuda.cudart()
    return int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0
