"""MemoryMeter: measures one rank's memory by the Plan's terms, in the process that computes. Planning is the planner's.

What a rank holds by design (weights, pages, buffers) it tells in bytes, so the rest can be told apart: what it takes
while nothing is computed is the libraries', and what it took on top of that, at its peak, the activations'.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backend.hardware.process_memory import forget_peak, read_process_memory, touched_bytes
from backend.measured_rank import MeasuredRank
from backend.planner.plan import MemoryTerm


@dataclass(frozen=True, slots=True)
class Held:
    """What a rank holds on its device by design.

    Attributes:
        weights: bytes, without the buffers of layers that come from host memory; those are `streaming`.
        pages: the memory of the pool.
        host: the memory of the host tier, where it is the device's own; None where there is none.
        communication: what joining the other ranks took; None for a rank alone.
    """

    weights: int
    pages: Tensor
    host: Tensor | None = None
    communication: int | None = None
    streaming: int = 0

    @property
    def areas(self) -> tuple[Tensor, ...]:
        """What the system may not have backed with memory yet."""
        return (self.pages,) if self.host is None else (self.pages, self.host)


class _Gauge(Protocol):
    """Reads a device, in the process that uses it."""

    def begin(self) -> None:
        """Lets the peak begin again at what is held now."""
        ...

    def read(self, areas: Sequence[Tensor]) -> _Reading: ...


@dataclass(frozen=True, slots=True)
class _Reading:
    """Bytes: held while nothing is computed, at the peak, and of the areas what is not backed by memory."""

    held: int
    peak: int
    untouched: int
    resident: int
    proportional: int | None = None


class MemoryMeter:
    """One rank's. `begin` comes when it has loaded, `settle` when it has warmed up; only then can it `measure`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gauge: _Gauge = _GpuGauge(device) if device.type == "cuda" else _ProcessorGauge()
        self._libraries = self._activations = 0

    def begin(self) -> None:
        """From here on the peak counts: what was taken only while loading is over."""
        self._gauge.begin()

    def settle(self, held: Held) -> None:
        """The first steps are over: what is taken now, beside what the rank knows of, is the libraries'."""
        now = self._gauge.read(held.areas)
        self._libraries = max(0, now.held - _known(held) + now.untouched)
        self._activations = max(0, now.peak - now.held)

    def measure(self, rank: int, held: Held) -> MeasuredRank:
        """The rank's memory at this moment; activations are those of the largest step so far."""
        now = self._gauge.read(held.areas)
        resting = self._libraries + _known(held) - now.untouched
        self._activations = max(self._activations, now.peak - resting)
        terms = {
            "weights": held.weights,
            "kv": held.pages.nbytes,
            "activations": self._activations,
            "libraries": self._libraries,
            "communication": held.communication,
            "host cache": None if held.host is None else held.host.nbytes,
            "streaming": held.streaming or None,
        }
        return MeasuredRank(
            rank=rank,
            device=str(self._device),
            terms=tuple(MemoryTerm(name, size) for name, size in terms.items() if size is not None),
            resident=now.resident,
            untouched=now.untouched,
            proportional=now.proportional,
        )


def held_on(device: torch.device) -> int:
    """Bytes of the device that this process holds now: for what a stage of its start takes."""
    gauge: _Gauge = _GpuGauge(device) if device.type == "cuda" else _ProcessorGauge()
    return gauge.read(()).held


def _known(held: Held) -> int:
    communication = held.communication or 0
    return held.weights + held.streaming + communication + sum(area.nbytes for area in held.areas)


class _ProcessorGauge:
    """Main memory, as the system counts it for this process."""

    def __init__(self) -> None:
        self._peaks = False

    def begin(self) -> None:
        self._peaks = forget_peak()

    def read(self, areas: Sequence[Tensor]) -> _Reading:
        untouched = 0
        for area in areas:
            touched = touched_bytes(area.data_ptr(), area.nbytes)
            untouched += 0 if touched is None else area.nbytes - touched
        now = read_process_memory()
        # A peak that cannot be forgotten is that of loading, and says nothing of a step.
        peak = now.peak if self._peaks else now.resident
        return _Reading(now.resident, peak, untouched, now.resident, now.proportional)


class _GpuGauge:
    """A GPU's memory: the driver's count for this process, and what torch's allocator had in use at its peak."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def read(self, areas: Sequence[Tensor]) -> _Reading:
        used = _own_gpu_memory(self._device)
        if used is None:
            # Whatever else runs there is counted too: a process in a container cannot tell itself from it.
            free, total = torch.cuda.mem_get_info(self._device)
            used = total - free
        temporary = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
        # The allocator keeps what a step gave back, so the peak is part of what the driver counts already.
        return _Reading(used - temporary, used, 0, used)


def _own_gpu_memory(device: torch.device) -> int | None:
    """What NVML says that this process holds of the GPU; None where it does not tell, as within most containers."""
    try:
        import pynvml
    except ImportError:
        return None
    with suppress(pynvml.NVMLError, AttributeError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    return None
