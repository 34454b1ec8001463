"""Replica: one copy of a model over its stages, with every device's memory, and what its pool holds. Pure.

One stage on the first machine is prepared as `decide` prepares it; stages and further replicas are drafted for the
devices that their shape names, by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError
from backend.hardware.cluster import Cluster
from backend.hardware.machine import Machine
from backend.planner import memory
from backend.planner.decide import settle
from backend.planner.draft import Draft, RankDraft, Wishes
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.shape import Seat
from backend.planner.fit.stages import StagePart, cut
from backend.planner.groups import group_link
from backend.planner.plan import Plan
from backend.planner.pool import choose_pool
from backend.planner.prepare import prepare, wish
from backend.planner.ranks import device_targets, on_cpu, roomiest
from backend.planner.staged.draft import StagedDraft
from backend.planner.staged.placing import Placed
from backend.planner.target import Target, choose_target, gpu_targets
from kvcache.layout import CacheLayout, stage_layout


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of the model.

    Attributes:
        seats, drafts, parts: of each stage: its devices, their memory before the pool, and its layers.
        layout: of the whole model's pages, which are counted alike on all stages.
        pages: that the pool has: as many as the tightest device holds.
        state_bytes: of one sequence's states of fixed size, on the device that has most of them.
        kept_states: sequences for which they are kept, beside the pool.
        plan: what `decide` makes of it; None for what this version cannot run, and where it refuses.
        refused: why it does.
        reasons: sentences of those who chose.
        staged: what several stages were placed as, where `serve` runs them.
    """

    seats: tuple[Seat, ...]
    drafts: tuple[Draft, ...]
    parts: tuple[StagePart, ...]
    layout: CacheLayout
    pages: int
    state_bytes: int = 0
    kept_states: int = 0
    plan: Plan | None = None
    refused: OutOfMemoryError | None = None
    reasons: tuple[str, ...] = ()
    staged: StagedDraft | None = None

    @property
    def first(self) -> Draft:
        return self.drafts[0]

    @property
    def step_tokens(self) -> int:
        return self.first.wishes.step_tokens

    @property
    def tightest(self) -> tuple[int, RankDraft]:
        """The rank whose device has the least room for pages, and its stage."""
        return min(
            ((stage, draft.tightest) for stage, draft in enumerate(self.drafts)),
            key=lambda one: (one[1].target.usable - one[1].spent) / one[1].page_bytes,
        )

    def pages_of(self, tokens: int) -> int:
        """Of one sequence."""
        return memory.pages_of_context(self.layout, tokens, self.step_tokens)

    def largest_context(self, most: int) -> int:
        """Positions of the longest sequence that the pool holds, alone, up to `most`."""
        return memory.context_of_pages(self.layout, self.pages, self.step_tokens, most)

    def concurrency(self, tokens: int) -> int:
        """Sequences of so many positions that the pool holds, states included, and a step computes."""
        page_bytes = self.tightest[1].page_bytes
        room = self.pages * page_bytes + self.kept_states * self.state_bytes
        each = self.pages_of(tokens) * page_bytes + self.state_bytes
        return min(room // max(1, each), self.first.wishes.max_sequences) if self.pages else 0


def served(settings: EngineSettings, model: KnownModel, machine: Machine, weights: str) -> Replica:
    """What `shardwise serve` makes of these settings.

    Raises SettingError for what cannot be obeyed, OutOfMemoryError where host memory is too small for layers there.
    """
    prepared = prepare(settings, model.facts, machine, device_targets(settings, machine), weights, "")
    draft = prepared.draft
    whole = cut(model.facts, draft.wishes.weights, memory.ELEMENT_BYTES[draft.wishes.dtype], [1.0])
    seat = Seat(0, tuple(int(rank.target.device.removeprefix("cuda:")) for rank in draft.ranks) if draft.cuda else ())
    plan, refused = None, None
    try:
        plan = settle(prepared, machine)
    except OutOfMemoryError as error:
        refused = error
    pages = plan.pages if plan else pool_pages(draft)
    reasons = plan.reasons if plan else prepared.reasons[0][:1]
    return Replica((seat,), (draft,), whole, draft.wishes.layout, pages, 0, 0, plan, refused, reasons)


def staged(placed: Placed) -> Replica:
    """Several stages as `serve --pp` would have them.

    Raises SettingError for what cannot be obeyed.
    """
    plan, refused = None, None
    try:
        plan = placed.settle()
    except OutOfMemoryError as error:
        refused = error
    made = placed.staged
    pages = plan.pages if plan else made.pages
    reasons = plan.reasons if plan else placed.explained.before
    return Replica(made.seats, made.drafts, made.parts, made.wishes.layout, pages, 0, 0, plan, refused, reasons, made)


def planned(
    settings: EngineSettings, model: KnownModel, cluster: Cluster, seats: Sequence[Seat], weights: str, users: int
) -> Replica:
    """A replica over these devices, drafted stage by stage; states of its users' sequences are kept beside pages.

    Raises ValueError where the model cannot be cut or divided so.
    """
    targets = [target for seat in seats for target in _targets(cluster.machines[seat.machine], seat)]
    wishes, _ = wish(settings, model.facts, targets, weights)
    element = memory.ELEMENT_BYTES[wishes.dtype]
    parts = cut(model.facts, wishes.weights, element, [_room(cluster.machines[seat.machine], seat) for seat in seats])
    made: dict[object, Draft] = {}
    drafts: list[Draft] = []
    for seat, part in zip(seats, parts, strict=True):
        machine = cluster.machines[seat.machine]
        key = (part.facts, part.weights, part.last, alike(machine, seat))
        if key not in made:
            made[key] = _draft(_of_stage(wishes, part), machine, seat)
        states = _state_bytes(model, part, element, seat.ranks)
        drafts.append(_with_states(made[key], states * users) if states else made[key])
    states = max(_state_bytes(model, part, element, seat.ranks) for seat, part in zip(seats, parts, strict=True))
    pages = min(pool_pages(draft) for draft in drafts)
    return Replica(tuple(seats), tuple(drafts), parts, wishes.layout, pages, states, users if states else 0)


def pool_pages(draft: Draft) -> int:
    """Pages of the pool that the draft would get; 0 where its devices are too small for it."""
    return max(0, choose_pool(draft)[0]) if draft.left > 0 else 0


def alike(machine: Machine, seat: Seat) -> object:
    """Equal for seats on which the same plan would be made."""
    if not seat.gpus:
        return machine.cpu, machine.memory
    gpus = [machine.gpus[number] for number in seat.gpus]
    link = group_link(machine, seat.gpus)
    return tuple((gpu.name, gpu.total, gpu.free, gpu.capability, gpu.bandwidth) for gpu in gpus), link


def _of_stage(wishes: Wishes, part: StagePart) -> Wishes:
    layout = stage_layout(wishes.layout, part.slots)
    return replace(wishes, facts=part.facts, layout=layout, weights=part.weights, outputs=part.last)


def _draft(wishes: Wishes, machine: Machine, seat: Seat) -> Draft:
    if seat.gpus:
        return roomiest(wishes, machine, seat.gpus)
    return on_cpu(wishes, machine, choose_target("cpu", machine)).draft


def _targets(machine: Machine, seat: Seat) -> tuple[Target, ...]:
    return gpu_targets(machine, seat.gpus) if seat.gpus else (choose_target("cpu", machine),)


def _room(machine: Machine, seat: Seat) -> float:
    return float(sum(target.usable for target in _targets(machine, seat)))


def _state_bytes(model: KnownModel, part: StagePart, element: int, ranks: int) -> int:
    """Of one sequence, on one rank of a stage; states are known in 16 bits and divided over ranks."""
    whole = sum(states.count * states.bytes for states in model.states) * element // 2
    return -(-int(whole * part.share) // ranks)


def _with_states(draft: Draft, count: int) -> Draft:
    ranks = tuple(replace(rank, terms=(*rank.terms, ("states", count))) for rank in draft.ranks)
    return replace(draft, ranks=ranks)
