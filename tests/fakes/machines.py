"""Machines as frozen values, for tests that plan for hardware which is not there."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from backend.hardware.cpu import Cpu
from backend.hardware.gpu import Gpu, GpuHolder, GpuLink, Way
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory

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
    **more: Any,
) -> Gpu:
    """`more`: further fields of Gpu."""
    fields: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index:08x}-0000-0000-0000-000000000000",
        "name": "Test GPU",
        "total": total,
        "free": total if free is None else free,
        "capability": capability,
        "driver": "580.65.06",
        "cuda": (13, 0),
        "holders": holders,
    }
    return Gpu(**(fields | more))


def gpu_machine(*gpus: Gpu, **more: Any) -> Machine:
    """A computer with the given GPUs, one of 24 GiB if none is given. `more`: further fields of Machine."""
    base = cpu_machine(available=64 * GIB, cores=16)
    return Machine(base.cpu, base.memory, gpus or (gpu(),), **more)


def pairs(count: int, way: Way, nvlink: float = 0.0, peer: bool = True) -> dict[tuple[int, int], GpuLink]:
    """Every pair of so many GPUs, all joined alike."""
    return {pair: GpuLink(*pair, way, nvlink, peer) for pair in combinations(range(count), 2)}


def dgx_h100(count: int = 8) -> Machine:
    """H100 behind NVSwitch: 450 GB/s each way."""
    gpus = [
        gpu(
            index, 85_520_809_984, capability=(9, 0), name="NVIDIA H100 80GB HBM3", bandwidth=3352.0, pcie_generation=5,
            pcie_width=16, numa_node=index // 4,
        )
        for index in range(count)
    ]  # fmt: skip
    return gpu_machine(*gpus, links=tuple(pairs(count, "nvswitch", 450.0).values()))


def paired_a100() -> Machine:
    """Four A100 of 80 GB over PCIe, 0 with 1 and 2 with 3 bridged: 300 GB/s each way."""
    gpus = [
        gpu(
            index, 80 * GIB, capability=(8, 0), name="NVIDIA A100 80GB PCIe", bandwidth=1935.0, pcie_generation=4,
            pcie_width=16,
        )
        for index in range(4)
    ]  # fmt: skip
    links = pairs(4, "node") | {pair: GpuLink(*pair, "nvlink", 300.0, True) for pair in ((0, 1), (2, 3))}
    return gpu_machine(*gpus, links=tuple(links.values()))


def consumer(count: int, **more: Any) -> list[Gpu]:
    """RTX 3090s. `more`: further fields of each Gpu."""
    fields = {"name": "NVIDIA GeForce RTX 3090", "bandwidth": 936.0, "pcie_generation": 4, "pcie_width": 16} | more
    return [gpu(index, 24 * GIB, capability=(8, 6), **fields) for index in range(count)]


def bridged_3090() -> Machine:
    return gpu_machine(*consumer(2), links=tuple(pairs(2, "nvlink", 56.25).values()))


def pcie_3090(count: int = 3, peer: bool = False) -> Machine:
    """RTX 3090s without a bridge, whose driver lets none write to another."""
    return gpu_machine(*consumer(count), links=tuple(pairs(count, "host bridge", peer=peer).values()))


def unequal() -> Machine:
    """24 and 48 GB of one generation: RTX 3090 and RTX A6000."""
    large = gpu(
        1, 48 * GIB, capability=(8, 6), name="NVIDIA RTX A6000", bandwidth=768.0, pcie_generation=4, pcie_width=16
    )
    return gpu_machine(*consumer(1), large, links=tuple(pairs(2, "host bridge").values()))
