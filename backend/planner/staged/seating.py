"""Seatings: on which devices of which machines so many stages could be, in which order. Choosing one is `placing`'s."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import permutations

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import Machine
from backend.planner.fit.shape import Seat
from backend.planner.groups import best_group
from backend.planner.model_facts import ModelFacts
from backend.planner.ranks import device_targets
from backend.planner.shares import divisible
from backend.planner.staged.site import Site, seconds_from_head

Seating = tuple[Seat, ...]
# Machines among which stages are chosen beside as many as there are stages, and allotments that are looked at.
_SPARE_MACHINES, _MOST_ALLOTMENTS = 7, 200
# Machines of which every order is tried.
_MOST_ORDERED = 4


def seatings(sites: Sequence[Site], facts: ModelFacts, settings: EngineSettings, stages: int) -> list[Seating]:
    """Every one worth drafting, machines in the order of their way to the head; empty where there are too few devices.

    Processors have one stage each, unless there are fewer machines than stages; a GPU never has two.
    """
    numbers = _nearest(sites, settings, stages)
    found: dict[Seating, None] = {}
    for level in _levels(sites, facts, settings):
        for counts in _allotments(sites, settings, numbers, stages):
            seats = [_seats(sites, facts, settings, at, count, level) for at, count in counts if count]
            if all(seats) and sum(map(len, seats)) == stages:
                found[tuple(seat for group in seats for seat in group)] = None
    return list(found)


def by_hand(sites: Sequence[Site], facts: ModelFacts, settings: EngineSettings, stages: int) -> list[Seating]:
    """In the order of machines, as many of them as there are stages; of fewer machines, the first have more stages."""
    machines = min(len(sites), stages)
    counts = [stages // machines + (number < stages % machines) for number in range(machines)]
    found: dict[Seating, None] = {}
    for level in _levels(sites, facts, settings):
        seats = [_seats(sites, facts, settings, at, count, level) for at, count in enumerate(counts)]
        if all(seats):
            found[tuple(seat for group in seats for seat in group)] = None
    return list(found)


def orders(seating: Seating) -> Iterator[Seating]:
    """The same devices with machines in other orders, stages of one machine beside each other."""
    groups: dict[int, list[Seat]] = {}
    for seat in seating:
        groups.setdefault(seat.machine, []).append(seat)
    numbers = list(groups)
    other = [(*numbers[1:], numbers[0])]
    for order in permutations(numbers) if len(numbers) <= _MOST_ORDERED else other:
        if list(order) != numbers:
            yield tuple(seat for number in order for seat in groups[number])


def free_seats(site: Site, facts: ModelFacts, settings: EngineSettings, taken: Collection[str] = ()) -> Iterator[Seat]:
    """Where one more stage could be: groups of GPUs that are not among the `taken` devices, else the processor."""
    gpus = _gpus(site.machine, settings)
    if gpus is None:
        return
    if not gpus:
        yield Seat(0)
        return
    left = [number for number in gpus if f"cuda:{number}" not in taken]
    sizes = {_ranks(facts, settings, most) for most in range(1, len(left) + 1)} - {0}
    yield from (Seat(0, best_group(site.machine, left, ranks)) for ranks in sorted(sizes))


def capacity(site: Site, settings: EngineSettings) -> int:
    """GPUs that stages could get there; a processor counts as one, and what cannot compute as none."""
    gpus = _gpus(site.machine, settings)
    return 0 if gpus is None else len(gpus) or 1


def _gpus(machine: Machine, settings: EngineSettings) -> list[int] | None:
    """Positions of those that may compute; none for a processor; None where the machine lacks what was asked for."""
    from msgspec.structs import replace

    try:
        targets = device_targets(replace(settings, tensor_parallel=1), machine)
    except SettingError:
        return None
    return sorted(int(target.device.removeprefix("cuda:")) for target in targets if target.cuda)


def _levels(sites: Sequence[Site], facts: ModelFacts, settings: EngineSettings) -> list[int]:
    """Ranks of a stage, at most."""
    if settings.tensor_parallel is not None:
        return [settings.tensor_parallel]
    most = max((len(_gpus(site.machine, settings) or ()) for site in sites), default=0)
    counts = {1, most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)}
    return sorted((count for count in counts if count), reverse=True)


def _nearest(sites: Sequence[Site], settings: EngineSettings, stages: int) -> list[int]:
    """Machines that can compute, the head first, then those with the shortest way to it; not too many of them."""
    able = [number for number, site in enumerate(sites) if capacity(site, settings)]
    able.sort(key=lambda number: (bool(sites[number].id), seconds_from_head(sites[number]), number))
    return able[: stages + _SPARE_MACHINES]


def _allotments(
    sites: Sequence[Site], settings: EngineSettings, numbers: Sequence[int], stages: int
) -> list[list[tuple[int, int]]]:
    """How many stages each machine gets; of machines that are alike, the first get as many as later ones or more."""
    few = len(numbers) < stages
    most: list[int] = []
    for number in numbers:
        gpus = _gpus(sites[number].machine, settings) or ()
        most.append(len(gpus) or (stages - len(numbers) + 1 if few else 1))
    found: list[list[tuple[int, int]]] = []

    def give(at: int, left: int, given: list[tuple[int, int]]) -> None:
        if len(found) >= _MOST_ALLOTMENTS:
            return
        if at == len(numbers):
            if not left:
                found.append(given)
            return
        upper = min(most[at], left)
        for earlier, count in given:
            if _alike(sites[earlier], sites[numbers[at]]):
                upper = min(upper, count)
        for count in range(upper, -1, -1):
            give(at + 1, left - count, [*given, (numbers[at], count)])

    give(0, stages, [])
    return found


def _alike(one: Site, other: Site) -> bool:
    return bool(one.id) and bool(other.id) and (one.machine, one.way) == (other.machine, other.way)


def _seats(
    sites: Sequence[Site], facts: ModelFacts, settings: EngineSettings, number: int, count: int, level: int
) -> list[Seat]:
    """So many stages on one machine; nothing where it has not the devices."""
    machine = sites[number].machine
    gpus = _gpus(machine, settings)
    if gpus is None:
        return []
    if not gpus:
        return [Seat(number)] * count
    ranks = _ranks(facts, settings, min(level, len(gpus) // count))
    return [] if not ranks else [Seat(number, group) for group in _groups(machine, gpus, count, ranks)]


def _ranks(facts: ModelFacts, settings: EngineSettings, most: int) -> int:
    """The most that the model can be divided over, exactly --tp where it is asked; 0 where it cannot be."""
    if settings.tensor_parallel is not None:
        return settings.tensor_parallel if settings.tensor_parallel <= most else 0
    sizes = (size for size in range(most, 0, -1) if size <= min(facts.heads) and divisible(facts, size))
    return next(sizes, 0)


def _groups(machine: Machine, gpus: list[int], count: int, ranks: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    left = list(gpus)
    for _ in range(count):
        group = best_group(machine, left, ranks)
        found.append(group)
        left = [gpu for gpu in left if gpu not in group]
    return found
