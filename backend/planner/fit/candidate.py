"""Candidate: one shape in one pair of formats, drafted for its devices; judging it is `verdict`'s. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as changed

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.cluster import Cluster
from backend.library.files import ModelFiles
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.replica import Replica, alike, planned, served, staged
from backend.planner.fit.shape import Shape
from backend.planner.ranks import USEFUL_CONTEXT
from backend.planner.staged.draft import StagedDraft
from backend.planner.staged.placing import draft_stages
from backend.planner.staged.site import sites_of

# What an engine computes in a step unless it is asked for more.
_USUAL_SEQUENCES = {True: 256, False: 64}
# What a processor's pool gets of what the asked contexts need: enough to be called roomy.
_SPARE = 1.2


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


def variants(asked: Question, shape: Shape, weights: str, kv_format: str, hosted: bool = False) -> Iterator[Candidate]:
    """The shape in these formats, with the plain settings and then with others that make more room for contexts.

    Parts of unequal GPUs, layers in host memory and a processor's pool follow the context that `serve` is asked for. So
    where the plain settings do not do, others are tried: of unequal GPUs, the parts that make most room. Nothing where
    the model, its devices or main memory do not allow it.
    """
    plain = _settings(asked, shape, weights, kv_format, hosted)
    first = _made(asked, shape, weights, kv_format, hosted, plain)
    if first is None:
        return
    yield first
    cuda = bool(shape.seats[0][0].gpus)
    others: Iterator[EngineSettings] = iter(())
    if not cuda:
        others = _pools(asked, first)
    elif hosted:
        others = (replace(plain, max_context=context) for context in _ladder(asked, first))
    elif not _equal(asked, shape):
        others = iter((replace(plain, max_context=asked.model.facts.max_positions),))
    for settings in others:
        made = _made(asked, shape, weights, kv_format, hosted, settings)
        if made is not None:
            yield made


def plain_settings(asked: Question, cuda: bool, users: int) -> EngineSettings:
    """Those of `serve` by itself, with room for as many sequences in a step as users were asked for."""
    files = ModelFiles(name=asked.model.name, format="safetensors", weights=(), folder="", bytes=0)
    return EngineSettings(files=files, max_sequences=users if users > _USUAL_SEQUENCES[cuda] else None)


def _made(
    asked: Question, shape: Shape, weights: str, kv_format: str, hosted: bool, settings: EngineSettings
) -> Candidate | None:
    try:
        replicas = _replicas(asked, shape, settings, weights)
    except (SettingError, OutOfMemoryError, ValueError):
        return None
    return Candidate(shape, weights, kv_format, hosted, settings, replicas)


def _settings(asked: Question, shape: Shape, weights: str, kv_format: str, hosted: bool) -> EngineSettings:
    seat = shape.seats[0][0]
    cuda, machine = bool(seat.gpus), asked.cluster.machines[seat.machine]
    return replace(
        plain_settings(asked, cuda, asked.users(shape.replicas)),
        device="auto" if cuda or not machine.gpus else "cpu",
        tensor_parallel=shape.tensor if cuda and not shape.free else None,
        pipeline_stages=shape.stages if shape.stages > 1 and shape.replicas == 1 else None,
        experts=shape.experts,
        weights=weights,
        kv_format=kv_format,
        host_weights=None if hosted else 0,
    )


def _ladder(asked: Question, first: Candidate) -> Iterator[int]:
    """Contexts as long as those of all users together, and longer: by powers of two, up to the model's own."""
    most = asked.model.facts.max_positions
    wanted = max(2 * USEFUL_CONTEXT, asked.context * asked.users(first.shape.replicas))
    context = 1 << (wanted - 1).bit_length()
    for _ in range(2):
        if context < most:
            yield context
        context *= 2
    yield most


def _pools(asked: Question, first: Candidate) -> Iterator[EngineSettings]:
    """A processor's pool with room for what was asked, and some to spare where there is memory for it."""
    replica = first.replicas[0]
    draft = replica.staged or replica.first
    left = int(draft.room) * draft.page_bytes if isinstance(draft, StagedDraft) else draft.left
    needed = replica.pages_of(asked.context) * asked.users(first.shape.replicas) * draft.page_bytes
    if left >= needed:
        yield replace(first.settings, kv_pool=min(left, int(needed * _SPARE)))


def _equal(asked: Question, shape: Shape) -> bool:
    """Whether all GPUs of each seat are, so that parts do not depend on the context."""
    machines = asked.cluster.machines
    for seat in (seat for seats in shape.seats for seat in seats):
        gpus = [machines[seat.machine].gpus[number] for number in seat.gpus]
        if len({(gpu.free, gpu.bandwidth) for gpu in gpus}) > 1:
            return False
    return True


def _replicas(asked: Question, shape: Shape, settings: EngineSettings, weights: str) -> tuple[Replica, ...]:
    machines = asked.cluster.machines
    if not asked.model.unserved and not asked.model.states:
        if shape.own:
            return (served(settings, asked.model, machines[0], weights),)
        if settings.pipeline_stages is not None:
            sites = sites_of(asked.cluster)
            return (staged(draft_stages(settings, asked.model.facts, sites, shape.stages, weights)),)
    users = asked.users(shape.replicas)
    made: dict[object, Replica] = {}
    found: list[Replica] = []
    for seats in shape.seats:
        key = tuple(alike(machines[seat.machine], seat) for seat in seats)
        if key not in made:
            made[key] = planned(settings, asked.model, asked.cluster, seats, weights, users)
        # What differs is only where it lies.
        found.append(changed(made[key], seats=tuple(seats)))
    return tuple(found)
