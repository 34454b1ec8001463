"""Link: the way between GPUs that work together, and what adding up numbers over it takes. Pure, no torch.

An all-reduce of n ranks takes `alpha(n) + 2 (n - 1) / n * bytes / bandwidth`, in rings. The figures were measured with
NCCL on one machine (aiconfigurator's tables at 095f58a5): small messages take 6.2, 9.5 and 15.6 us on 2, 4 and 8 H100,
10, 14 and 22 on A100, 9.5, 15 and 25 on B200, and over PCIe 7, 12 and 23 on L40S, 6.3, 13 and 25 on RTX PRO 6000.
Large ones move at 319 to 445 GB/s on H100 (450 each way), 193 to 222 on A100 (300), 535 to 703 on B200 (900); at 20,
5.2 and 1.4 GB/s on L40S over PCIe 4 (31.5), 38.6, 26 and 25 over PCIe 5 (63). Copies that go through main memory,
because the driver lets no GPU write to another, take 15 us and move at 11.3 of PCIe 4's 31.5 GB/s (club-3090 at
4a29ab57).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.hardware.peer import PeerPath

# GB/s of one PCIe lane by generation, after encoding.
_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
# Where the driver does not tell: the oldest that still serves.
_UNKNOWN_PCIE = 15.75
_MICROSECOND = 1e-6


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

    kind: str
    bandwidth: float
    near: bool
    name: str
    note: str = ""
    switched: bool = False

    def all_reduce_seconds(self, ranks: int, count: int, own_kernel: bool = False) -> float:
        """Time to add up `count` bytes over `ranks` ranks; `own_kernel`: by an engine's own kernel where it is small."""
        return self.latency(ranks) + 2 * (ranks - 1) / ranks * count / (self.bus(ranks) * 1e9)

    def send_seconds(self, count: int) -> float:
        """Time to hand `count` bytes to one other."""
        return self.latency(2) + count / (self.bus(2) * 1e9)

    def latency(self, ranks: int) -> float:
        """Seconds for a message of no size."""
        fixed, each = {"nvlink": (6.0, 2.0), "pcie": (1.0, 3.0), "host": (15.0, 3.0)}[self.kind]
        return (fixed + each * ranks) * _MICROSECOND

    def bus(self, ranks: int) -> float:
        """GB/s that a ring of so many ranks reaches."""
        if self.kind == "nvlink":
            return 0.7 * self.bandwidth
        pair = 0.6 if self.kind == "pcie" else 0.36
        if ranks == 2:
            return pair * self.bandwidth
        return (0.4 if self.near and self.kind == "pcie" else 0.16) * self.bandwidth

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


def host_bandwidth(gpu: Gpu) -> float:
    """GB/s from pinned host memory, by what its slot is built for: large copies reach four fifths of it."""
    return 0.8 * (_slot(gpu) or _UNKNOWN_PCIE)


def _measured(built: float, peer: PeerPath | None) -> float:
    """What a link is worth: as built, unless copies were much slower than the four fifths that they reach of it."""
    return min(built, peer.gigabytes / 0.8) if peer is not None and peer.gigabytes else built


def _slot(gpu: Gpu) -> float:
    """GB/s of a GPU's own PCIe lanes; 0 where the driver does not tell."""
    return _LANE.get(gpu.pcie_generation, 0.0) * gpu.pcie_width
