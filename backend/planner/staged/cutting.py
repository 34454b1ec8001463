"""best_cut: which layers each stage of a seating gets, by its memory and its speed. Pure.

Cuts between the stages' speeds and their memories are a start; from the best of them, edges move a layer at a time as
long as that helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backend.planner.fit.shape import Seat
from backend.planner.groups import speed
from backend.planner.staged.draft import StagedDraft
from backend.planner.staged.drafter import Drafter, part_of_processor
from backend.planner.timing.device_speed import processor_speed

# From layers in proportion to the speed of memory to layers in proportion to its room.
_BY_MEMORY = (0.0, 0.25, 0.5, 0.75, 1.0)
# Moves of an edge after which nothing that predictions can tell apart is gained.
_MOST_MOVES = 64
_GAIN = 1e-4


def best_cut(drafter: Drafter, seats: Sequence[Seat]) -> StagedDraft:
    """Raises ValueError where the model cannot be cut into so many stages, or divided over these devices."""
    starts = [drafter.by_rooms(seats, rooms) for rooms in _rooms(drafter, seats)]
    found = min(starts, key=lambda one: one.rank)
    for _ in range(_MOST_MOVES):
        better = min(_moved(drafter, found), key=lambda one: one.rank, default=found)
        if not _gains(better, found):
            break
        found = better
    return found


def edges_of(staged: StagedDraft) -> tuple[int, ...]:
    return (0, *(part.stop for part in staged.parts))


def _gains(one: StagedDraft, other: StagedDraft) -> bool:
    (tier, figure), (old_tier, old_figure) = one.rank, other.rank
    return tier < old_tier or (tier == old_tier and figure < old_figure - _GAIN * abs(old_figure))


def _moved(drafter: Drafter, staged: StagedDraft) -> Iterator[StagedDraft]:
    """With one edge a layer further, or nearer."""
    edges = edges_of(staged)
    for place in range(1, len(edges) - 1):
        for step in (-1, 1):
            moved = (*edges[:place], edges[place] + step, *edges[place + 1 :])
            if moved[place - 1] < moved[place] < moved[place + 1]:
                try:
                    yield drafter.at_edges(staged.seats, moved)
                except ValueError:
                    continue


def _rooms(drafter: Drafter, seats: Sequence[Seat]) -> Iterator[list[float]]:
    speeds = [_speed(drafter, seats, seat) for seat in seats]
    memories = [float(_memory(drafter, seats, seat)) for seat in seats]
    for part in _BY_MEMORY:
        yield [
            (1 - part) * one / sum(speeds) + part * other / sum(memories)
            for one, other in zip(speeds, memories, strict=True)
        ]


def _speed(drafter: Drafter, seats: Sequence[Seat], seat: Seat) -> float:
    """GB/s of memory: what a small batch waits for."""
    machine = drafter.sites[seat.machine].machine
    if seat.gpus:
        return sum(speed(machine, number).memory for number in seat.gpus)
    part = part_of_processor(machine, _sharing(seats, seat))
    return processor_speed(part.cpu, part.rates.memory or None).memory


def _memory(drafter: Drafter, seats: Sequence[Seat], seat: Seat) -> int:
    usable = sum(target.usable for target in drafter.targets(seat))
    return max(1, usable if seat.gpus else usable // _sharing(seats, seat))


def _sharing(seats: Sequence[Seat], seat: Seat) -> int:
    return sum(one.machine == seat.machine and not one.gpus for one in seats)
