"""HostGroup: collectives for tensors of a device by way of main memory, where another group adds them up.

The way for ranks that share one GPU, and for GPUs that reach each other by no other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.parallel.group import Group


class HostGroup:
    """Copies out, lets `inner` sum or gather, copies back; each call waits for the device."""

    def __init__(self, inner: Group, name: str, device: torch.device) -> None:
        """inner: for tensors in main memory; closed with this group."""
        self._inner = inner
        self._pinned = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.name = name

    @property
    def rank(self) -> int:
        return self._inner.rank

    @property
    def size(self) -> int:
        return self._inner.size

    def all_reduce(self, x: Tensor) -> None:
        host = self._copy(x)
        self._inner.all_reduce(host)
        x.copy_(host)

    def gather(self, x: Tensor) -> Tensor | None:
        gathered = self._inner.gather(self._copy(x))
        return None if gathered is None else gathered.to(x.device)

    def close(self) -> None:
        self._inner.close()

    def _copy(self, x: Tensor) -> Tensor:
        """The tensor in our own memory, which is page-locked beside a GPU and grows as needed."""
        if self._memory.numel() < x.nbytes:
            self._memory = torch.empty(x.nbytes, dtype=torch.uint8, pin_memory=self._pinned)
        return self._memory[: x.nbytes].view(x.dtype).view(x.shape).copy_(x)
