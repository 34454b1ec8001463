"""Builds the Machine that a person describes: kinds of GPUs, how they are joined, main memory, a processor. Pure.

What is not said is as such machines are built; nothing here was measured. Reading words is `specification`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NoReturn

from backend.errors import SettingError
from backend.hardware.cpu import Cpu
from backend.hardware.gpu import Gpu, GpuLink, Way
from backend.hardware.gpu_names import is_sxm, short_name, takes_bridge
from backend.hardware.gpu_table import GpuFacts
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory

GIB = 1 << 30
# Main memory beside GPUs: systems are sold with twice the GPUs' memory or more (DGX H100: 2 TB to 640 GB), in modules
# that add up to multiples of this.
_MEMORY_SHARE, _LEAST_MEMORY = 2, 64 * GIB
# Of main memory, what Linux keeps to describe its pages (64 bytes of each 4096), and what a quiet system takes.
_PAGES_SHARE, _SYSTEM = 1 / 64, GIB
# More GPUs than this hang on two processors: data-center cards, and consumers' in machines built for many.
_ONE_PROCESSOR, _ONE_PROCESSOR_CONSUMER = 2, 4
# GPUs that NVLink on the board joins in one machine: HGX boards have eight, a rack of GB200 or GB300 is one domain.
_BOARD, _RACK = 8, 72
_MOST_GPUS = 16
_LANES = 16


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """So many GPUs of one kind.

    Attributes:
        total, free: bytes of each, where they are not the table's.
        generation, width: of their slots, where these are not the machine's.
    """

    facts: GpuFacts
    count: int = 1
    total: int | None = None
    free: int | None = None
    generation: int | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Wiring:
    """How GPUs are joined. What is None, or "usual", is as the kind comes.

    Attributes:
        link: "usual" (on-board NVLink, no bridges), "nvlink", "pairs" (NVLink of 0 with 1, 2 with 3, ...), "pcie".
        generation, width: of their slots, at most the card's own.
        peer: whether the driver lets one write to another over PCIe.
    """

    link: str = "usual"
    generation: int | None = None
    width: int | None = None
    peer: bool | None = None


def build_machine(
    groups: Sequence[GpuGroup],
    wiring: Wiring = Wiring(),
    memory: Memory | None = None,
    cpu: Cpu | None = None,
    number: int = 0,
) -> Machine:
    """A machine of these GPUs, none at all included. `number` tells its GPUs' uuids from other machines'.

    Raises:
        SettingError: such GPUs cannot be joined like that.
    """
    kinds = [group for group in groups for _ in range(group.count)]
    _check_count(groups)
    nodes = _nodes(kinds)
    gpus = tuple(_gpu(group, position, number, wiring, nodes[position]) for position, group in enumerate(kinds))
    return Machine(
        cpu=cpu or usual_cpu(max(16, 8 * len(gpus))),
        memory=memory or _usual_memory(gpus),
        gpus=gpus,
        links=_links(kinds, wiring, nodes),
    )


def main_memory(total: int) -> Memory:
    """So many bytes, on a system where nothing else runs."""
    return Memory(total, max(0, int(total * (1 - _PAGES_SHARE)) - _SYSTEM))


def usual_cpu(cores: int, features: tuple[str, ...] = ("avx2",)) -> Cpu:
    """A processor of which nobody said more."""
    return Cpu(f"with {cores} cores", cores, cores, None, features)


def _usual_memory(gpus: Sequence[Gpu]) -> Memory:
    if any("GB10" in gpu.name for gpu in gpus):
        # One memory for both: what the GPU may take is not there twice.
        total = max(gpu.total for gpu in gpus)
        return Memory(total, total // 16)
    wanted = _MEMORY_SHARE * sum(gpu.total for gpu in gpus)
    return main_memory(max(1, -(-wanted // _LEAST_MEMORY)) * _LEAST_MEMORY)


def _check_count(groups: Sequence[GpuGroup]) -> None:
    boards = [group for group in groups if is_sxm(group.facts)]
    rack = any("NVLink" in group.facts.pcie for group in boards)
    most = _RACK if rack else _BOARD if boards and "V100" not in boards[0].facts.name else _MOST_GPUS
    count = sum(group.count for group in groups)
    if count > most:
        name = short_name(groups[0].facts.name)
        raise SettingError(
            f"One machine with {count} GPUs is not known.",
            f"Machines of {name} have {most} at most.",
            f"Write several machines: '{-(-count // most)} nodes of {most}x {name}'.",
        )


def _nodes(kinds: Sequence[GpuGroup]) -> list[int | None]:
    """The processor that each GPU is near: None with a single one, else the first half's and the second's."""
    consumer = all(not _data_center(group.facts) for group in kinds)
    most = _ONE_PROCESSOR_CONSUMER if consumer else _ONE_PROCESSOR
    if len(kinds) <= most:
        return [None] * len(kinds)
    return [position * 2 // len(kinds) for position in range(len(kinds))]


def _data_center(facts: GpuFacts) -> bool:
    return not any(word in facts.name for word in ("GeForce", "RTX", "Radeon", "GB10"))


def _gpu(group: GpuGroup, position: int, number: int, wiring: Wiring, node: int | None) -> Gpu:
    facts = group.facts
    total = group.total or int(facts.mem_total_gib_reported * GIB)
    generation, width = slot(facts)
    return Gpu(
        index=position,
        uuid=f"GPU-{position:08x}-0000-0000-0000-{number:012x}",
        name=facts.name,
        total=total,
        free=total if group.free is None else min(total, group.free),
        capability=_capability(facts),
        numa_node=node,
        pcie_generation=min(generation, group.generation or wiring.generation or generation),
        pcie_width=min(width, group.width or wiring.width or width),
        bandwidth=facts.mem_bw_gbs,
    )


def slot(facts: GpuFacts) -> tuple[int, int]:
    """PCIe generation and lanes. Chips that a faster link joins to their processor count as 5.0 x16, which is less."""
    generation, _, width = facts.pcie.partition(" x")
    if not width.isdigit():
        return 5, _LANES
    return int(float(generation)), int(width)


def _capability(facts: GpuFacts) -> tuple[int, int]:
    """(0, 0) for AMD's, which have names."""
    major, _, minor = facts.compute_capability.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _links(kinds: Sequence[GpuGroup], wiring: Wiring, nodes: Sequence[int | None]) -> tuple[GpuLink, ...]:
    links = tuple(_link(first, second, kinds, wiring, nodes) for first, second in combinations(range(len(kinds)), 2))
    if wiring.link in ("nvlink", "pairs") and not any(link.nvlink for link in links):
        _refuse_nvlink(kinds)
    return links


def _refuse_nvlink(kinds: Sequence[GpuGroup]) -> NoReturn:
    without = next((group.facts for group in kinds if not group.facts.nvlink_gbs_bidir_per_gpu), None)
    if without is not None:
        raise SettingError(
            f"The {short_name(without.name)} has no NVLink.",
            "It writes to other GPUs over PCIe only.",
            "Write pcie instead, or nothing.",
        )
    raise SettingError(
        "NVLink joins two GPUs of a kind or more.", "The machine has no two that it could join.", "Leave nvlink out."
    )


def _paired(first: int, second: int, kinds: Sequence[GpuGroup]) -> bool:
    """Whether a bridge lies over these two: the first of a kind with the second, the third with the fourth, ..."""
    facts = kinds[first].facts
    places = [position for position, group in enumerate(kinds) if group.facts is facts]
    return second in places and places.index(first) // 2 == places.index(second) // 2


def _link(first: int, second: int, kinds: Sequence[GpuGroup], wiring: Wiring, nodes: Sequence[int | None]) -> GpuLink:
    one, other = kinds[first].facts, kinds[second].facts
    speed = min(one.nvlink_gbs_bidir_per_gpu or 0.0, other.nvlink_gbs_bidir_per_gpu or 0.0) / 2
    pair = _paired(first, second, kinds)
    if speed and wiring.link in ("usual", "nvlink") and is_sxm(one) and is_sxm(other):
        return GpuLink(first, second, _board_way(one), speed, True)
    if speed and pair and (wiring.link == "pairs" or (wiring.link == "nvlink" and takes_bridge(one))):
        return GpuLink(first, second, "nvlink", speed, True)
    peer = wiring.peer if wiring.peer is not None else not any("GeForce" in facts.name for facts in (one, other))
    return GpuLink(first, second, _way(nodes[first], nodes[second]), 0.0, peer)


def _board_way(facts: GpuFacts) -> Way:
    """V100 and AMD's are joined without a switch."""
    return "nvlink" if "V100" in facts.name or "AMD" in facts.name else "nvswitch"


def _way(one: int | None, other: int | None) -> Way:
    if one is None:
        return "host bridge"
    return "node" if one == other else "system"
