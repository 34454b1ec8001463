"""Findings about GPUs together: driver, slots, processors, links, peers, and which are ill. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from types import MappingProxyType

from msgspec.structs import replace

from app.doctor.finding import Finding
from backend.hardware.gpu_table import gpu_facts
from backend.hardware.health import warnings_of
from backend.hardware.machine import Machine
from backend.hardware.peer import PeerPath
from backend.planner.links import pair_link

_FIXES = MappingProxyType(
    {
        "throttled": "Look after fans, dust and the power supply.",
        "correctable": "Few are no harm; where they grow, have the GPU checked.",
        "remap": "Restart the machine, or reset the GPU, when nothing computes.",
    }
)


def gpu_findings(machine: Machine) -> list[Finding]:
    return [
        *_left_out(machine),
        *_warnings(machine),
        *_driver(machine),
        *_slots(machine),
        *_nodes(machine),
        *_links(machine),
        *_peers(machine),
    ]


def _left_out(machine: Machine) -> Iterator[Finding]:
    for fault in machine.left_out:
        fix = fault.fix or "See `nvidia-smi -q` and the kernel's log."
        yield Finding("gpu", "warning", f"{fault.what} It is left out.", fix)


def _warnings(machine: Machine) -> Iterator[Finding]:
    for gpu in machine.gpus:
        for kind, sentence in warnings_of(gpu).items():
            yield Finding("gpu", "warning", sentence, _FIXES[kind])


def _driver(machine: Machine) -> Iterator[Finding]:
    """Every GPU of a machine has the same one."""
    driver, cuda = next(((gpu.driver, gpu.cuda) for gpu in machine.gpus if gpu.driver), ("", (0, 0)))
    if driver:
        serves = f", which serves programs for CUDA up to {cuda[0]}.{cuda[1]}" if cuda[0] else ""
        yield Finding("driver", "ok", f"NVIDIA's driver {driver}{serves}.")


def _slots(machine: Machine) -> Iterator[Finding]:
    """Cards with more lanes than their slot."""
    for number, gpu in enumerate(machine.gpus):
        facts = gpu_facts(gpu.name)
        lanes = facts.pcie.rpartition(" x")[2] if facts is not None else ""
        if lanes.isdigit() and 0 < gpu.pcie_width < int(lanes):
            yield Finding(
                "pcie",
                "note",
                f"GPU {number} ({gpu.name}) is a card of {lanes} lanes in a slot that gives it {gpu.pcie_width}: "
                "copies to and from it take longer.",
                f"If the machine has a slot of {lanes} lanes free, put it there.",
            )


def _nodes(machine: Machine) -> Iterator[Finding]:
    """Which processor's memory is near to which GPUs."""
    near: dict[int, list[str]] = {}
    for number, gpu in enumerate(machine.gpus):
        if gpu.numa_node is not None:
            near.setdefault(gpu.numa_node, []).append(str(number))
    if len(near) < 2:
        return
    parts = [f"{', '.join(numbers)} near node {node}" for node, numbers in sorted(near.items())]
    yield Finding("numa", "ok", f"GPUs {'; '.join(parts)}. Each GPU's program runs on the cores near to it.")


def _links(machine: Machine) -> Iterator[Finding]:
    """What the driver says joins each two GPUs."""
    if len(machine.gpus) < 2:
        return
    claimed = replace(machine, peers=())
    joined: dict[str, list[str]] = {}
    for first, second in combinations(range(len(machine.gpus)), 2):
        joined.setdefault(pair_link(claimed, first, second).name, []).append(f"{first}-{second}")
    every = len(joined) == 1
    ways = [f"{name} joins {'all GPUs' if every else ', '.join(pairs)}" for name, pairs in joined.items()]
    yield Finding("links", "ok", f"{'; '.join(ways)}.")


def _peers(machine: Machine) -> Iterator[Finding]:
    """What copies between each two GPUs really did."""
    if len(machine.gpus) < 2:
        return
    numbers = {gpu.uuid: number for number, gpu in enumerate(machine.gpus)}
    known = [peer for peer in machine.peers if peer.first in numbers and peer.second in numbers]
    if not known:
        yield Finding("peers", "note", "Copies between the GPUs were not tried: torch cannot use them here.")
        return
    for peer in known:
        if not peer.works:
            pair = f"GPUs {numbers[peer.first]} and {numbers[peer.second]}"
            yield Finding(
                "peers",
                "warning",
                f"{pair} do not write to each other: {peer.problem}. Their data goes through main memory.",
                "Switch off the IOMMU (or ACS) in the firmware, or update the driver; then restart the machine.",
            )
    yield from _working([peer for peer in known if peer.works])


def _working(peers: list[PeerPath]) -> Iterator[Finding]:
    for direct, how in ((True, "directly"), (False, "through main memory, as the driver allows nothing else")):
        pairs = [peer for peer in peers if peer.direct is direct]
        if pairs:
            slowest, latest = min(peer.gigabytes for peer in pairs), max(peer.microseconds for peer in pairs)
            what = "One pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
            yield Finding(
                "peers",
                "ok" if direct else "note",
                f"{what} of GPUs copied {how}, every byte right: {slowest:.3g} GB/s or more, "
                f"{latest:.3g} us or less for a small copy.",
            )
