"""Machines as frozen values, for tests that plan for hardware which is not there."""

from __future__ import annotations

from backend.hardware.cpu import Cpu
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory
from backend.hardware.nvml import Gpu, GpuHolder

GIB = 1 << 30


def cpu_machine(
    available: int = 20 * GIB, cores: int = 2, features: tuple[str, ...] = ("avx512_bf16", "avx512f", "avx2")
) -> Machine:
    """A computer without a GPU."""
    return Machine(Cpu("Test CPU", cores, cores, None, features), Memory(max(available, 24 * GIB), available))


def gpu(
    index: int = 0,
    total: int = 24 * GIB,
    free: int | None = None,
    capability: tuple[int, int] = (8, 9),
    holders: tuple[GpuHolder, ...] = (),
) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index:08x}-0000-0000-0000-000000000000",
        name="Test GPU",
        total=total,
        free=total if free is None else free,
        capability=capability,
        driver="580.65.06",
        cuda=(13, 0),
        holders=holders,
    )


def gpu_machine(*gpus: Gpu) -> Machine:
    """A computer with the given GPUs, one of 24 GiB if none is given."""
    base = cpu_machine(available=64 * GIB, cores=16)
    return Machine(base.cpu, base.memory, gpus or (gpu(),))
