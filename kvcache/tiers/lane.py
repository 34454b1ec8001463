"""Lane: the way on which bytes travel between device and host memory. What travels when is PageMover's."""

from __future__ import annotations

from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

# Copies that are under way at once on a CUDA device before one waits for them.
BURST = 64


class Lane(Protocol):
    """`mark` is called by the thread that computes, the rest by the one thread that copies.

    Attributes:
        burst: how many copies may be begun before `finish`.
    """

    burst: int

    def mark(self) -> Any:
        """This moment among the device's work: handed to `copy`, which comes after it."""
        ...

    def copy(self, target: Tensor, source: Tensor, mark: Any) -> None:
        """Begins to copy all bytes, after the device's work before `mark` and after the copies before. May block."""
        ...

    def finish(self) -> None:
        """Blocks until all copies that were begun have happened."""
        ...


class ProcessorLane:
    """From memory to memory. The interpreter's lock is free meanwhile, and no threads of torch are woken."""

    burst = 1

    def mark(self) -> None:
        return None

    def copy(self, target: Tensor, source: Tensor, mark: None) -> None:
        numpy.copyto(target.numpy(), source.numpy())

    def finish(self) -> None:
        pass


class CudaLane:
    """A stream of its own, which waits for the computing one's work up to a mark, and then runs beside it."""

    burst = BURST

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(self, target: Tensor, source: Tensor, mark: torch.cuda.Event) -> None:
        self._stream.wait_event(mark)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def finish(self) -> None:
        # An event that blocks leaves the processor to those who launch kernels.
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        event.synchronize()


def lane_of(device: torch.device) -> Lane:
    return CudaLane(device) if device.type == "cuda" else ProcessorLane()
