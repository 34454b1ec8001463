"""Machine: what the planner needs to know of this computer, as frozen plain data. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from backend.hardware.cgroup import read_cgroup
from backend.hardware.cpu import Cpu, read_cpu
from backend.hardware.memory import Memory, read_memory
from backend.hardware.nvml import Gpu, GpuReading, read_gpus


class Machine(Struct, frozen=True):
    """One computer.

    Attributes:
        cpu, memory: as this process may use them.
        gpus: the GPUs that CUDA shows to this process, in CUDA's order where CUDA_VISIBLE_DEVICES gives one,
        else
            by bus.
        gpu_problem: why the driver could not be asked; empty where it could, or where none is installed.
    """

    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""


def read_machine(root: Path = Path("/")) -> Machine:
    """Reads this computer's facts, in milliseconds where no NVIDIA driver must be asked."""
    limits = read_cgroup(root)
    reading: GpuReading = read_gpus()
    return Machine(
        cpu=read_cpu(limits.cpus, root),
        memory=read_memory(limits),
        gpus=visible(reading.gpus, os.environ.get("CUDA_VISIBLE_DEVICES")),
        gpu_problem=reading.problem,
    )


def visible(gpus: tuple[Gpu, ...], names: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES names (indices, or uuids and their beginnings); None names all.

    As in CUDA, the list ends at the first name that is no GPU's.
    """
    if names is None:
        return gpus
    chosen: list[Gpu] = []
    for name in (part.strip() for part in names.split(",")):
        found = [gpu for gpu in gpus if _named(gpu, name)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen.append(found[0])
    return tuple(chosen)


def _named(gpu: Gpu, name: str) -> bool:
    return gpu.index == int(name) if name.isdigit() else name.startswith("GPU-") and gpu.uuid.startswith(name)
