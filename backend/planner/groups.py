"""Groups of GPUs that may serve one model together: for each size the best joined. Choosing a size is `decide`'s."""

from __future__ import annotations

from collections.abc import Sequence

from backend.hardware.machine import Machine
from backend.planner.links import Link, link_of, pair_link
from backend.planner.timing.device_speed import DeviceSpeed, device_speed

# GPUs whose free memory differs by less than this share are taken for equal: a desktop on one of them is no reason.
_EQUAL_MEMORY = 0.15
_EQUAL_SPEED = 0.05


def best_group(machine: Machine, among: Sequence[int], size: int) -> tuple[int, ...]:
    """Positions in `Machine.gpus`, in order: of one GPU, that with the most free memory; of more, those joined best.

    `among` are the positions to choose from, at least `size`.

    Grown from every GPU by the one whose worst link into the group is best, so a group stays within one NVLink domain
    as long as that has GPUs left; memory decides between equals.
    """
    if size == 1:
        return (max(among, key=lambda number: (machine.gpus[number].free, -number)),)
    links = {(a, b): pair_link(machine, a, b).rank for a in among for b in among if a != b}
    grown = [_grow(machine, among, start, size, links) for start in among]
    return max(grown, key=lambda group: (link_of(machine, group).rank, _memory(machine, group), *(-n for n in group)))


def weights_of(machine: Machine, group: tuple[int, ...], by_memory: float) -> tuple[float, ...]:
    """Each GPU's part of the work: by its memory's speed, by its free memory, or between the two (`by_memory` 0 to 1).

    Differences too small to be worth uneven parts count as none.
    """
    speeds = _evened([speed(machine, number).memory for number in group], _EQUAL_SPEED)
    memories = _evened([float(machine.gpus[number].free) for number in group], _EQUAL_MEMORY)
    return tuple(
        (1 - by_memory) * one / sum(speeds) + by_memory * other / sum(memories)
        for one, other in zip(speeds, memories, strict=True)
    )


def speed(machine: Machine, number: int) -> DeviceSpeed:
    return device_speed(machine.gpus[number])


def group_link(machine: Machine, group: tuple[int, ...]) -> Link | None:
    """What joins a group; None for one GPU."""
    return link_of(machine, group) if len(group) > 1 else None


def _grow(
    machine: Machine,
    among: Sequence[int],
    start: int,
    size: int,
    links: dict[tuple[int, int], tuple[bool, bool, bool, float]],
) -> tuple[int, ...]:
    group = [start]
    while len(group) < size:
        others = [number for number in among if number not in group]
        group.append(
            max(
                others,
                key=lambda number: (min(links[number, member] for member in group), machine.gpus[number].free, -number),
            )
        )
    return tuple(sorted(group))


def _memory(machine: Machine, group: tuple[int, ...]) -> int:
    return sum(machine.gpus[number].free for number in group)


def _evened(values: list[float], share: float) -> list[float]:
    """All alike where the least is within `share` of the most."""
    return values if min(values) < (1 - share) * max(values) else [1.0] * len(values)
