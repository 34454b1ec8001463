"""Candidate: one shape in one pair of formats, drafted for its devices; judging it is `verdict`'s. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.cluster import Cluster
from backend.library.files import ModelFiles
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.replica import Replica, alike, planned, served
from backend.planner.fit.shape import Shape
from backend.planner.ranks import USEFUL_CONTEXT

# What an engine computes in a step unless it is asked for more.
_USUAL_SEQUENCES = {True: 256, False: 64}


@dataclass(frozen=True, slots=True)
class Question:
    """What every candidate of one report shares; `ask` is resolved."""

    model: KnownModel
    cluster: Cluster
    ask: FitAsk

    @property
    def context(self) -> int:
        if self.ask.context is None:
            raise ValueError("the ask has to be resolved first")
        return self.ask.context

    def users(self, replicas: int) -> int:
        """Of one replica of so many."""
        return -(-self.ask.users // replicas)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shape in formats.

    Attributes:
        hosted: whether layers may lie in host memory.
        settings: with which `serve` makes it; of what it cannot make, with which it was drafted.
        replicas: as many as the shape has.
    """

    shape: Shape
    weights: str
    kv_format: str
    hosted: bool
    settings: EngineSettings
    replicas: tuple[Replica, ...]

    def largest_context(self, most: int) -> int:
        """Of a sequence that any replica may get."""
        return min(replica.largest_context(most) for replica in self.replicas)

    def concurrency(self, tokens: int) -> int:
        return sum(replica.concurrency(tokens) for replica in self.replicas)


def candidate(asked: Question, shape: Shape, weights: str, kv_format: str, hosted: bool = False) -> Candidate | None:
    """The shape in these formats; None where the model, its devices or main memory do not allow it.

    Where settings of their own hold the asked context and users and the plain ones do not (unequal GPUs, layers in
    host memory, a processor), these are taken.
    """
    found: Candidate | None = None
    for settings in _settings(asked, shape, weights, kv_format, hosted):
        try:
            replicas = _replicas(asked, shape, settings, weights)
        except (SettingError, OutOfMemoryError, ValueError):
            continue
        made = Candidate(shape, weights, kv_format, hosted, settings, replicas)
        if _boots(made) and holds(asked, made):
            return made
        found = found or made
    return found


def holds(asked: Question, made: Candidate) -> bool:
    """Whether every replica's pool has room for its users' contexts."""
    users = asked.users(made.shape.replicas)
    return all(replica.concurrency(asked.context) >= users for replica in made.replicas)


def plain_settings(asked: Question, cuda: bool) -> EngineSettings:
    """Those of `serve` by itself, with room for as many sequences in a step as users were asked for."""
    files = ModelFiles(name=asked.model.name, format="safetensors", weights=(), folder="", bytes=0)
    users = asked.ask.users
    return EngineSettings(files=files, max_sequences=users if users > _USUAL_SEQUENCES[cuda] else None)


def _settings(asked: Question, shape: Shape, weights: str, kv_format: str, hosted: bool) -> Iterator[EngineSettings]:
    seat = shape.seats[0][0]
    cuda, machine = bool(seat.gpus), asked.cluster.machines[seat.machine]
    plain = replace(
        plain_settings(asked, cuda),
        device="auto" if cuda or not machine.gpus else "cpu",
        tensor_parallel=shape.tensor if cuda else None,
        experts=shape.experts,
        weights=weights,
        kv_format=kv_format,
        host_weights=None if hosted else 0,
    )
    yield plain
    if cuda and not hosted and _equal(asked, shape):
        return
    most, users = asked.model.facts.max_positions, asked.users(shape.replicas)
    for context in sorted({asked.context, min(most, asked.context * users)}):
        if context > USEFUL_CONTEXT or not cuda:
            yield replace(plain, max_context=context)


def _equal(asked: Question, shape: Shape) -> bool:
    """Whether all GPUs of each seat are, so that parts do not depend on the context."""
    for seats in shape.seats:
        for seat in seats:
            gpus = [asked.cluster.machines[seat.machine].gpus[number] for number in seat.gpus]
            if len({(gpu.free, gpu.bandwidth) for gpu in gpus}) > 1:
                return False
    return True


def _replicas(asked: Question, shape: Shape, settings: EngineSettings, weights: str) -> tuple[Replica, ...]:
    machines = asked.cluster.machines
    if shape.own and not asked.model.unserved and not asked.model.states:
        return (served(settings, asked.model, machines[0], weights),)
    users = asked.users(shape.replicas)
    made: dict[object, Replica] = {}
    found: list[Replica] = []
    for seats in shape.seats:
        key = tuple(alike(machines[seat.machine], seat) for seat in seats)
        if key not in made:
            made[key] = planned(settings, asked.model, asked.cluster, seats, weights, users)
        found.append(made[key])
    return tuple(found)


def _boots(made: Candidate) -> bool:
    return all(replica.refused is None for replica in made.replicas)
