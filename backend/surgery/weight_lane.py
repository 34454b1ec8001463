"""WeightLane: how weights travel from host memory into the two buffers on a device, beside what computes there.

Two buffers take turns. Everything here is put in line and returns at once; nothing waits on the host.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from backend.planner.hosted import BUFFERS


class WeightLane(Protocol):
    """Called by the thread that computes."""

    def copy(self, buffer: int, source: Tensor, target: Tensor) -> None:
        """Begins to copy all bytes to where `buffer` lies, after the buffer's last `leave`."""
        ...

    def arrive(self, buffer: int) -> None:
        """What is computed from now on comes after the buffer's last copy."""
        ...

    def leave(self, buffer: int) -> None:
        """What has been put in line up to now was all that reads the buffer as it is."""
        ...

    def finish(self) -> None:
        """Blocks until all copies that were begun have happened."""
        ...


class ProcessorWeightLane:
    """From memory to memory, at once."""

    def copy(self, buffer: int, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def arrive(self, buffer: int) -> None:
        pass

    def leave(self, buffer: int) -> None:
        pass

    def finish(self) -> None:
        pass


class CudaWeightLane:
    """A stream of its own, joined to the computing one by an event for each buffer and way.

    An event that was never recorded holds nothing up.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copied = [torch.cuda.Event() for _ in range(BUFFERS)]
        self._read = [torch.cuda.Event() for _ in range(BUFFERS)]

    def copy(self, buffer: int, source: Tensor, target: Tensor) -> None:
        self._stream.wait_event(self._read[buffer])
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        self._copied[buffer].record(self._stream)

    def arrive(self, buffer: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._copied[buffer])

    def leave(self, buffer: int) -> None:
        self._read[buffer].record(torch.cuda.current_stream(self._device))

    def finish(self) -> None:
        self._stream.synchronize()


def weight_lane_of(device: torch.device) -> WeightLane:
    return CudaWeightLane(device) if device.type == "cuda" else ProcessorWeightLane()
