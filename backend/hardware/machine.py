"""Machine: what the planner needs to know of this computer, as frozen plain data. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from backend.hardware.cgroup import read_cgroup
from backend.hardware.cpu import Cpu, read_cpu
from backend.hardware.gpu import Gpu, GpuFault, GpuLink
from backend.hardware.health import left_out
from backend.hardware.memory import Memory, read_memory
from backend.hardware.mps_limit import limited_by_mps
from backend.hardware.nvml import read_gpus
from backend.hardware.peer import PeerPath
from backend.hardware.peer_store import default_peer_store
from backend.hardware.rate_store import default_rate_store
from backend.hardware.rates import HostRates


class Machine(Struct, frozen=True):
    """One computer.

    Attributes:
        cpu, memory: as this process may use them.
        gpus: the GPUs that CUDA shows to this process and that may compute, in CUDA's order where
            CUDA_VISIBLE_DEVICES gives one, else by bus.
        gpu_problem: why the driver could not be asked; empty where it could, or where none is installed.
        links: what the driver says of the ways between GPUs, by their indices.
        left_out: GPUs that are there and must not compute.
        peers: what a probe found of GPUs writing to each other, by their uuids; empty where none ran.
        rates: of main memory, disk and copies to GPUs, where they were measured.
        pod: whether this process runs in a Kubernetes pod.
    """

    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    links: tuple[GpuLink, ...] = ()
    left_out: tuple[GpuFault, ...] = ()
    peers: tuple[PeerPath, ...] = ()
    pod: bool = False
    rates: HostRates = HostRates()

    def link(self, first: int, second: int) -> GpuLink | None:
        """The way between the GPUs of two indices, if the driver was asked."""
        pair = (min(first, second), max(first, second))
        return next((link for link in self.links if (link.first, link.second) == pair), None)

    def peer(self, first: str, second: str) -> PeerPath | None:
        """What the probe found of two GPUs, by uuid."""
        return next((peer for peer in self.peers if {peer.first, peer.second} == {first, second}), None)


def read_machine(root: Path = Path("/")) -> Machine:
    """Reads this computer's facts, in milliseconds where no NVIDIA driver must be asked.

    Nothing is remembered but what was probed of GPUs' peers and of rates: a GPU that was lost since the last time is
    left out.
    """
    limits = read_cgroup(root)
    reading = read_gpus()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    faults = left_out(reading)
    lost = {fault.index for fault in faults}
    shown = visible(reading.gpus, names, faults)
    # An instance computes although the GPU that it is part of does not.
    gpus = tuple(_with_node(gpu, root) for gpu in shown if gpu.parent or gpu.index not in lost)
    gpus = limited_by_mps(gpus, os.environ.get("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", ""))
    cpu = read_cpu(limits.cpus, root)
    return Machine(
        cpu=cpu,
        memory=read_memory(limits),
        gpus=gpus,
        gpu_problem=reading.problem,
        links=reading.links,
        left_out=tuple(fault for fault in faults if names is None or _among(fault, names)),
        peers=default_peer_store().read(gpus) or (),
        pod="KUBERNETES_SERVICE_HOST" in os.environ,
        rates=default_rate_store().read(cpu, gpus) or HostRates(),
    )


def visible(gpus: tuple[Gpu, ...], names: str | None, faults: tuple[GpuFault, ...] = ()) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES names (indices, or uuids and their beginnings); None names all.

    As in CUDA, the list ends at the first name that is no GPU's; one of `faults`, which no longer is one, is passed by.
    An instance of a GPU that MIG divides stands for a GPU, alone: CUDA shows a process no more than one.
    """
    if names is None:
        return gpus
    if names.strip().startswith("MIG-"):
        return _instances(gpus, names.split(",")[0].strip())
    chosen: list[Gpu] = []
    for name in (part.strip() for part in names.split(",")):
        found = [gpu for gpu in gpus if _named(gpu, name)]
        if not found and any(_named(fault, name) for fault in faults):
            continue
        if len(found) != 1 or found[0] in chosen:
            break
        chosen.append(found[0])
    return tuple(chosen)


def _instances(gpus: tuple[Gpu, ...], name: str) -> tuple[Gpu, ...]:
    """The instance of this uuid, as a GPU with its share of the memory and of the way to it; none if there is none."""
    for gpu in gpus:
        for part in gpu.instances:
            if part.uuid == name:
                share = part.total / gpu.total
                return (
                    replace(
                        gpu,
                        uuid=part.uuid,
                        name=part.name,
                        total=part.total,
                        free=part.free,
                        holders=part.holders,
                        bandwidth=gpu.bandwidth * share,
                        mig=False,
                        instances=(),
                        parent=gpu.uuid,
                    ),
                )
    return ()


def _named(gpu: Gpu | GpuFault, name: str) -> bool:
    return gpu.index == int(name) if name.isdigit() else name.startswith("GPU-") and gpu.uuid.startswith(name)


def _among(fault: GpuFault, names: str) -> bool:
    return any(_named(fault, name.strip()) for name in names.split(","))


def _with_node(gpu: Gpu, root: Path) -> Gpu:
    """The GPU with the NUMA node that the kernel knows for its place on PCI; -1 there means that it knows none."""
    domain, _, rest = gpu.bus_id.lower().partition(":")
    try:
        node = int((root / f"sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node").read_text())
    except (OSError, ValueError):
        return gpu
    return replace(gpu, numa_node=node) if node >= 0 else gpu
