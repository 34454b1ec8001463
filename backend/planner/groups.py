"""Groups of GPUs that may serve one model together: for each size the best joined. Choosing a size is `decide`'s."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from backend.hardware.machine import Machine
from backend.planner.links import Link, link_of, pair_link
from backend.planner.timing.device_speed import DeviceSpeed, device_speed

_Pair = tuple[int, int]
_Rank = tuple[bool, bool, bool, float]

# GPUs whose free memory differs by less than this share are taken for equal: a desktop on one of them is no reason.
_EQUAL_MEMORY = 0.15
_EQUAL_SPEED = 0.05


def best_group(machine: Machine, among: Sequence[int], size: int) -> tuple[int, ...]:
    """Positions in `Machine.gpus`, in order: of one GPU, that with the most free memory; of more, those joined best.

    `among` are the positions to choose from, at least `size`.
    """
    return best_groups(machine, among, [size])[0]


def best_groups(machine: Machine, among: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """`best_group` of each size.

    Grown from every GPU by the one whose worst link into the group is best, so a group stays within one NVLink domain
    as long as that has GPUs left; memory decides between equals.
    """
    most = max(sizes)
    links = _links(machine, among) if most > 1 else {}
    grown = [_grow(machine, among, start, most, links) for start in among] if most > 1 else []
    return [_best(machine, among, [tuple(sorted(one[:size])) for one in grown], size, links) for size in sizes]


def _best(
    machine: Machine, among: Sequence[int], groups: Sequence[tuple[int, ...]], size: int, links: dict[_Pair, _Rank]
) -> tuple[int, ...]:
    if size == 1:
        return (max(among, key=lambda number: (machine.gpus[number].free, -number)),)
    return max(
        set(groups),
        key=lambda group: (
            min(links[pair] for pair in combinations(group, 2)),
            _memory(machine, group),
            *(-n for n in group),
        ),
    )


def _links(machine: Machine, among: Sequence[int]) -> dict[_Pair, _Rank]:
    """How good the way between any two is, both ways round."""
    found: dict[_Pair, _Rank] = {}
    for one, other in combinations(sorted(among), 2):
        found[one, other] = found[other, one] = pair_link(machine, one, other).rank
    return found


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


def _grow(machine: Machine, among: Sequence[int], start: int, size: int, links: dict[_Pair, _Rank]) -> tuple[int, ...]:
    """GPUs in the order in which they join: the first of them are the group of any smaller size."""
    group = [start]
    worst = {number: links[number, start] for number in among if number != start}
    while len(group) < size:
        joined = max(worst, key=lambda number: (worst[number], machine.gpus[number].free, -number))
        group.append(joined)
        del worst[joined]
        worst = {number: min(rank, links[number, joined]) for number, rank in worst.items()}
    return tuple(group)


def _memory(machine: Machine, group: tuple[int, ...]) -> int:
    return sum(machine.gpus[number].free for number in group)


def _evened(values: list[float], share: float) -> list[float]:
    """All alike where the least is within `share` of the most."""
    return values if min(values) < (1 - share) * max(values) else [1.0] * len(values)
