"""Findings about GPUs together: what joins them, whether they write to each other, and which are ill. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from types import MappingProxyType

from msgspec.structs import replace

from app.doctor.finding import Finding
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
    return [*_left_out(machine), *_warnings(machine), *_links(machine), *_peers(machine)]


def _left_out(machine: Machine) -> Iterator[Finding]:
    for fault in machine.left_out:
        yield Finding("gpu", "warning", f"{fault.what} It is left out.", "See `nvidia-smi -q` and the kernel's log.")


def _warnings(machine: Machine) -> Iterator[Finding]:
    for gpu in machine.gpus:
        for kind, sentence in warnings_of(gpu).items():
            yield Finding("gpu", "warning", sentence, _FIXES[kind])


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
