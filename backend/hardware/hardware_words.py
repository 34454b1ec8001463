"""Says a Machine or a Cluster in words: short for a heading, long for a report. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from backend.hardware.cluster import Cluster, Network
from backend.hardware.gpu import Gpu
from backend.hardware.gpu_names import short_name
from backend.hardware.machine import Machine

_GIB = 1 << 30


def machine_words(machine: Machine) -> str:
    """Such as "4x H100 80GB HBM3, NVLink", or "CPU, 32 GiB"."""
    if not machine.gpus:
        return f"CPU, {_gib(machine.memory.total)}"
    joined = _joined(machine)
    return _counted(short_name(gpu.name) for gpu in machine.gpus) + (f", {joined}" if joined else "")


def machines_words(machines: tuple[Machine, ...]) -> str:
    """Several machines, those alike together: "2 nodes of 4x A100-SXM4-80GB, NVLink"."""
    words = [machine_words(machine) for machine in machines]
    if len(words) == 1:
        return words[0]
    runs = [(name, len(list(run))) for name, run in groupby(words)]
    return " and ".join(f"{count} node{'s' if count > 1 else ''} of {name}" for name, count in runs)


def describe_hardware(cluster: Cluster) -> str:
    """One line a kind of machine, and one for the network, with the figures that plans are made from."""
    runs = [(text, len(list(run))) for text, run in groupby(_long(machine) for machine in cluster.machines)]
    several = len(cluster.machines) > 1
    lines = [f"{count} machine{'s, each' if count > 1 else ''}: {text}" if several else text for text, count in runs]
    if cluster.network is not None:
        lines.append(_network(cluster.network))
    return "\n".join(lines)


def _long(machine: Machine) -> str:
    main = f"{_gib(machine.memory.total)} of main memory ({_gib(machine.memory.available)} available)"
    processor = f"CPU {machine.cpu.name}" if machine.cpu.name else "CPU"
    if not machine.gpus:
        return f"{processor}; {main}"
    kinds = _counted(f"{short_name(gpu.name)} ({_memory(gpu)}, {gpu.bandwidth:,.0f} GB/s)" for gpu in machine.gpus)
    joined = _joined(machine, speeds=True)
    missing = "left out: " + ", ".join(f"GPU {fault.index}" for fault in machine.left_out) if machine.left_out else ""
    return "; ".join(part for part in (kinds, joined, main, processor, missing) if part)


def _memory(gpu: Gpu) -> str:
    return _gib(gpu.total) if gpu.free == gpu.total else f"{_gib(gpu.free)} of {_gib(gpu.total)} free"


def _joined(machine: Machine, speeds: bool = False) -> str:
    """What joins the GPUs, NVLink before PCIe."""
    if len(machine.gpus) < 2:
        return ""
    by_nvlink = [link for link in machine.links if link.nvlink]
    if not by_nvlink:
        alone = speeds and not all(link.peer for link in machine.links)
        return _pcie(machine.gpus) + (" through main memory" if alone else "")
    technique = "xGMI" if all("AMD" in gpu.name for gpu in machine.gpus) else "NVLink"
    speed = f" ({min(link.nvlink for link in by_nvlink):.4g} GB/s each way)" if speeds else ""
    if len(by_nvlink) == len(machine.links):
        return f"{technique}{speed}"
    pairs = ", ".join(f"{link.first}-{link.second}" for link in by_nvlink)
    return f"{technique} {pairs}{speed}" + (f", else {_pcie(machine.gpus)}" if speeds else "")


def _pcie(gpus: tuple[Gpu, ...]) -> str:
    slowest = min(gpus, key=lambda gpu: (gpu.pcie_generation, gpu.pcie_width))
    if not slowest.pcie_generation or not slowest.pcie_width:
        return "PCIe"
    return f"PCIe {slowest.pcie_generation}.0 x{slowest.pcie_width}"


def _network(network: Network) -> str:
    return (
        f"{network.name}: {network.bandwidth:.4g} GB/s each way as built, {network.reached:.3g} reached, "
        f"{network.latency * 1e6:.3g} us"
    )


def _counted(names: Iterable[str]) -> str:
    return " + ".join(f"{len(list(run))}x {name}" for name, run in groupby(names))


def _gib(count: int) -> str:
    amount = count / _GIB
    return f"{amount:,.0f} GiB" if amount >= 1000 else f"{amount:.4g} GiB"
