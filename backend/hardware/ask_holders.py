"""Asks NVML which processes hold a GPU's memory. For the asking processes only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

import pynvml

from backend.hardware.gpu import GpuHolder, HolderKind
from backend.hardware.nvml_value import value_or

# Its server; the kernel cuts names after 15 characters.
_MPS = "nvidia-cuda-mps"


def ask_holders(handle: Any) -> tuple[GpuHolder, ...]:
    """Of a GPU or an instance of one, each process once. Not every GPU and container lets one ask."""
    holders: dict[int, GpuHolder] = {}
    for kind, process in _processes(handle):
        # A client of MPS may be listed among the programs that compute, and a desktop's among both others.
        if process.pid in holders and kind != "mps":
            continue
        held = process.usedGpuMemory
        name = _name(int(process.pid))
        served: HolderKind = "mps" if name.startswith(_MPS) else kind
        holders[process.pid] = GpuHolder(int(process.pid), name, None if held is None else int(held), served)
    return tuple(holders.values())


def _processes(handle: Any) -> Iterator[tuple[HolderKind, Any]]:
    for process in value_or([], lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)):
        yield "compute", process
    for process in value_or([], lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle)):
        yield "graphics", process
    for process in value_or([], lambda: pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)):
        yield "mps", process


def _name(pid: int) -> str:
    """The program's file, as the driver or the kernel knows it; empty where neither tells."""
    told = value_or("", lambda: str(pynvml.nvmlSystemGetProcessName(pid)))
    if told:
        return PurePosixPath(told.split()[0]).name
    import psutil

    with suppress(psutil.Error):
        return psutil.Process(pid).name()
    return ""
