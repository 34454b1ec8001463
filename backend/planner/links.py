"""Link: the way between GPUs that work together, by what a probe or the driver tells. Pure, no torch.

What adding up over it takes is `all_reduce`'s, from what was measured on links alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.hardware.peer import PeerPath
from backend.hardware.rates import HostRates
from backend.planner.all_reduce import Kind, all_reduce_seconds

# GB/s of one PCIe lane by generation, after encoding.
_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
# Where the driver does not tell: the oldest that still serves.
_UNKNOWN_PCIE = 15.75


@dataclass(frozen=True, slots=True)
class Link:
    """What joins a group of GPUs, by its slowest pair.

    Attributes:
        kind: "nvlink", "pcie" (one GPU writes to another), or "host" (through main memory).
        bandwidth: GB/s in one direction, as built.
        near: whether the pairs meet below one processor; PCIe shares its lanes above it.
        name: for people.
        note: what is wrong with it; empty where nothing is.
        switched: whether all pairs meet in one switch of NVLinks.
    """

    kind: Kind
    bandwidth: float
    near: bool
    name: str
    note: str = ""
    switched: bool = False

    def all_reduce_seconds(self, ranks: int, count: float, own_kernel: bool = False) -> float:
        """Time to add up `count` bytes over `ranks` ranks; an engine's own kernel may, where it is faster."""
        return all_reduce_seconds(self.kind, self.bandwidth, self.near, ranks, count, own_kernel)

    def send_seconds(self, count: float) -> float:
        """Time to hand `count` bytes to one other: what a ring of two moves to add them up."""
        return self.all_reduce_seconds(2, count)

    @property
    def rank(self) -> tuple[bool, bool, bool, float]:
        """Greater is better."""
        return self.kind == "nvlink", self.kind == "pcie", self.near, self.bandwidth


def link_of(machine: Machine, members: Iterable[int]) -> Link:
    """What joins the GPUs at these positions of `Machine.gpus`: their worst pair. There are at least two."""
    positions = sorted(members)
    pairs = [(a, b) for number, a in enumerate(positions) for b in positions[number + 1 :]]
    return min((pair_link(machine, *pair) for pair in pairs), key=lambda link: link.rank)


def pair_link(machine: Machine, first: int, second: int) -> Link:
    """The link of two GPUs, by what a probe measured where one did, else by what the driver claims."""
    one, other = machine.gpus[first], machine.gpus[second]
    found = machine.link(one.index, other.index)
    peer = machine.peer(one.uuid, other.uuid)
    lanes = min(_slot(one), _slot(other)) or _UNKNOWN_PCIE
    near = found is not None and found.way not in ("node", "system", "unknown")
    host = Link("host", lanes, near, f"PCIe through main memory ({lanes:.0f} GB/s each way)")
    if peer is not None and not peer.works:
        return replace(host, note=f"GPUs {first} and {second} do not write to each other: {peer.problem}")
    if found is not None and found.nvlink:
        speed = _measured(found.nvlink, peer)
        switched = found.way == "nvswitch"
        through = " through a switch" if switched else ""
        return Link("nvlink", speed, True, f"NVLink{through} ({speed:.0f} GB/s each way)", switched=switched)
    if peer.direct if peer is not None else found is not None and found.peer:
        speed = _measured(lanes, peer)
        return Link("pcie", speed, near, f"PCIe ({speed:.0f} GB/s each way)")
    return host


def host_bandwidth(gpu: Gpu, rates: HostRates | None = None) -> float:
    """GB/s from pinned host memory: as measured, else four fifths of what its slot is built for."""
    measured = rates.to_gpu(gpu.uuid) if rates is not None else 0.0
    return measured or 0.8 * (_slot(gpu) or _UNKNOWN_PCIE)


def _measured(built: float, peer: PeerPath | None) -> float:
    """What a link is worth: as built, unless copies were much slower than the four fifths that they reach of it."""
    return min(built, peer.gigabytes / 0.8) if peer is not None and peer.gigabytes else built


def _slot(gpu: Gpu) -> float:
    """GB/s of a GPU's own PCIe lanes; 0 where the driver does not tell."""
    return _LANE.get(gpu.pcie_generation, 0.0) * gpu.pcie_width
