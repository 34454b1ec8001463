"""shapes: the ways over a cluster's devices that are worth planning. Pure; formats are `formats`'.

Every count of GPUs of the first machine divides a model by itself, as `serve` would. Stages and replicas take equal
groups, and of their counts the powers of two, one a machine, and all there is room for: what lies between is neither
faster nor smaller than both its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backend.hardware.cluster import Cluster
from backend.hardware.machine import Machine
from backend.planner.fit.shape import Seat, Shape
from backend.planner.groups import best_group
from backend.planner.links import pair_link
from backend.planner.model_facts import ModelFacts
from backend.planner.shares import choose_experts, divisible

# More stages than this on machines that fewer would do for only lengthen the way of a token.
_MOST_STAGES = 16


@dataclass(frozen=True, slots=True)
class Division:
    """Over how many ranks an engine can divide a model: `even` where heads must divide by the ranks (vLLM)."""

    facts: ModelFacts
    even: bool = False

    def allows(self, ranks: int) -> bool:
        if self.even and any(heads % ranks for heads in self.facts.heads):
            return False
        return (not self.facts.heads or ranks <= min(self.facts.heads)) and divisible(self.facts, ranks)


def shapes(cluster: Cluster, division: Division) -> list[Shape]:
    """Every shape, those that `serve` could take first, none twice."""
    found: dict[tuple[object, ...], Shape] = {}
    for shape in (*_own(cluster.machines[0], division), *_many(cluster, division), *_unlike(cluster, division)):
        found.setdefault((shape.seats, shape.experts), shape)
    return list(found.values())


def _own(machine: Machine, division: Division) -> Iterator[Shape]:
    """On the first machine, by the ranks alone."""
    if not machine.gpus:
        yield Shape(((Seat(0),),), own=True)
        return
    everywhere = range(len(machine.gpus))
    for ranks in range(1, len(everywhere) + 1):
        if division.allows(ranks):
            seats = ((Seat(0, best_group(machine, everywhere, ranks)),),)
            yield Shape(seats, own=True)
            if division.facts.experts and ranks > 1 and _power(ranks) and _enough_experts(division.facts, ranks):
                usual, _ = choose_experts("auto", division.facts, ranks)
                yield Shape(seats, "tensor" if usual == "expert" else "expert", own=True)


def _many(cluster: Cluster, division: Division) -> Iterator[Shape]:
    """With stages, with replicas, and with both."""
    layers = _layers(division.facts)
    for ranks in _ranks(cluster, division):
        seats = _seats(cluster, ranks)
        for stages in _stages(cluster, len(seats), layers):
            most = len(seats) // stages
            if stages > 1:
                yield Shape((tuple(seats[:stages]),))
            if most > 1 and (stages == 1 or not _joined_well(cluster, ranks * stages)):
                yield Shape(tuple(tuple(seats[first * stages : (first + 1) * stages]) for first in range(most)))


def _unlike(cluster: Cluster, division: Division) -> Iterator[Shape]:
    """A stage on each machine with all of its GPUs, where they have unlike counts of them."""
    counts = [len(machine.gpus) for machine in cluster.machines]
    if len(set(counts)) == 1 or not all(counts) or len(counts) > min(_layers(division.facts), _MOST_STAGES):
        return
    if not division.even:
        yield Shape((tuple(Seat(number, tuple(range(count))) for number, count in enumerate(counts)),), free=True)


def _ranks(cluster: Cluster, division: Division) -> list[int]:
    if not any(machine.gpus for machine in cluster.machines):
        return [1]
    most = max(len(machine.gpus) for machine in cluster.machines)
    counts = {count for count in range(1, most + 1) if _power(count) or most % count == 0}
    return [count for count in sorted(counts) if division.allows(count)]


def _stages(cluster: Cluster, seats: int, layers: int) -> list[int]:
    machines = len(cluster.machines)
    counts = {1, machines, seats} | {count for count in range(2, seats + 1) if _power(count)}
    return [count for count in sorted(counts) if count <= min(seats, layers, _MOST_STAGES)]


def _seats(cluster: Cluster, ranks: int) -> list[Seat]:
    """Groups of so many GPUs, the best joined of each machine first, machine after machine."""
    found: list[Seat] = []
    for number, machine in enumerate(cluster.machines):
        if not machine.gpus:
            found += [Seat(number)] if ranks == 1 and not any(one.gpus for one in cluster.machines) else []
        left = list(range(len(machine.gpus)))
        while len(left) >= ranks:
            group = _next_group(machine, left, ranks)
            found.append(Seat(number, group))
            left = [gpu for gpu in left if gpu not in group]
    return found


def _next_group(machine: Machine, left: Sequence[int], ranks: int) -> tuple[int, ...]:
    return (left[0],) if ranks == 1 else best_group(machine, left, ranks)


def _joined_well(cluster: Cluster, ranks: int) -> bool:
    """Whether so many GPUs of one machine could divide layers over NVLink instead, which is better than stages."""
    machine = cluster.machines[0]
    if len(machine.gpus) < ranks or ranks < 2:
        return False
    return all(pair_link(machine, 0, other).kind == "nvlink" for other in range(1, ranks))


def _layers(facts: ModelFacts) -> int:
    """Those that stages can share: each needs one that keeps K and V, since pages are counted alike on all."""
    return min(len(facts.layers), len(facts.layer_parameters) or len(facts.layers))


def _power(count: int) -> bool:
    return count & (count - 1) == 0


def _enough_experts(facts: ModelFacts, ranks: int) -> bool:
    return min(part.count for part in facts.experts) >= ranks
