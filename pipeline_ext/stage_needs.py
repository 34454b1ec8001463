"""What each stage of a Plan needs of a machine, and the Plan with one of them elsewhere. Pure.

`failover` decides which machine to try, and what to do where none has room. A replaced stage keeps its layers and as
many pages, so that page ids stay equal on all stages; how many ranks share it may change.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace as changed

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.planner.decide import ranks_of_draft
from backend.planner.draft import Draft, with_host
from backend.planner.fit.shape import Seat
from backend.planner.kv_choice import KVChoice
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan, Rank, Stage
from backend.planner.stage_plan import ranks_of
from backend.planner.staged.drafter import Drafter
from backend.planner.staged.plan import stage_of
from backend.planner.staged.seating import free_seats
from backend.planner.staged.site import Site
from backend.planner.weight_choice import serves
from pipeline_ext.placement import Placeable
from quant.kv_format import parse_kv_formats


class RankNeed(Struct, frozen=True):
    """Bytes that one rank takes of its device: of `weights`, of its share of all `pages`, and of the rest."""

    weights: int
    pages: int
    rest: int

    @property
    def total(self) -> int:
        return self.weights + self.pages + self.rest


class StageNeed(Struct, frozen=True):
    """What one stage takes where it is; `cuda`: of GPUs, one each, rather than of main memory, which ranks share."""

    span: LayerSpan
    cuda: bool
    ranks: tuple[RankNeed, ...]

    @property
    def total(self) -> int:
        return sum(rank.total for rank in self.ranks)


def stage_needs(plan: Plan) -> tuple[StageNeed, ...]:
    """Of every stage, in their order; nothing of a Plan without stages."""
    return tuple(_need(stage, ranks_of(plan, number)) for number, stage in enumerate(plan.stages))


def replacement(plan: Plan, stage: int, machine: Placeable, facts: ModelFacts, *, fresh: bool = False) -> Plan | None:
    """The Plan with that stage on `machine`, with the same layers and pages; None where it has no room for it.

    The machine may be one that has another stage of the Plan already, or the one that lost it.

    Args:
        facts: the whole model's.
        fresh: whether the machine was read while its other stages of this Plan ran, so that what is free is free for
            this one; else what these take is taken off.
    """
    settled = _settled(plan, machine, facts)
    edges = (0, *(one.span.stop for one in plan.stages))
    others = [number for number, one in enumerate(plan.stages) if one.peer == machine.id and number != stage]
    taken = {rank.device for number in others for rank in ranks_of(plan, number)}
    room = 0 if fresh else sum(_bytes(rank) for number in others for rank in ranks_of(plan, number) if _on_cpu(rank))
    drafts = (
        _drafted(plan, stage, machine.site, facts, settled, seat, edges, len(others))
        for seat in free_seats(machine.site, facts, settled, taken)
    )
    holding = [draft for draft in drafts if draft is not None and _holds(plan, draft, room)]
    if not holding:
        return None
    return _with(plan, stage, min(holding, key=lambda draft: draft.seconds), machine.site, len(others))


def _need(stage: Stage, ranks: tuple[Rank, ...]) -> StageNeed:
    return StageNeed(stage.span, not _on_cpu(ranks[0]), tuple(map(_rank_need, ranks)))


def _rank_need(rank: Rank) -> RankNeed:
    terms = {term.name: term.bytes for term in rank.memory}
    weights, pages = terms.get("weights", 0), terms.get("kv", 0)
    return RankNeed(weights, pages, sum(terms.values()) - weights - pages)


def _on_cpu(rank: Rank) -> bool:
    return rank.device == "cpu"


def _bytes(rank: Rank) -> int:
    return sum(term.bytes for term in rank.memory)


def _settled(plan: Plan, machine: Placeable, facts: ModelFacts) -> EngineSettings:
    """Settings that ask for what the Plan has decided; how many ranks a GPU stage gets is open."""
    files = ModelFiles(name=plan.model, format="safetensors", weights=(), folder="", bytes=0)
    return EngineSettings(
        files=files,
        dtype=plan.dtype,  # type: ignore[arg-type]
        weights=plan.weight_format,
        max_context=plan.max_context,
        max_sequences=plan.max_sequences,
        step_tokens=plan.step_tokens,
        experts=plan.experts if facts.experts else "auto",
    )


def _drafted(
    plan: Plan,
    stage: int,
    site: Site,
    facts: ModelFacts,
    settings: EngineSettings,
    seat: Seat,
    edges: tuple[int, ...],
    beside: int,
) -> Draft | None:
    """The stage's layers on these devices; None where the machine does not compute in the Plan's formats."""
    capabilities = [site.machine.gpus[number].capability for number in seat.gpus]
    if not all(serves(plan.weight_format, one) for one in capabilities or [None]):
        return None
    measured = KVChoice(parse_kv_formats(plan.kv_format), "")
    drafter = Drafter(changed(settings, kv_format="auto"), facts, [site], plan.weight_format, measured)
    try:
        return drafter.one(seat, edges, stage, 1 + beside)
    except (ValueError, SettingError, OutOfMemoryError):
        return None


def _holds(plan: Plan, draft: Draft, taken: int) -> bool:
    """Whether the devices have room for the Plan's pages beside what is spent, and taken by other stages."""
    draft = with_host(draft, plan.host_pages)
    if draft.cuda:
        return all(rank.target.usable - rank.spent >= plan.pages * rank.page_bytes for rank in draft.ranks)
    spent = sum(rank.spent for rank in draft.ranks)
    return draft.ranks[0].target.usable - taken - spent >= plan.pages * draft.page_bytes


def _with(plan: Plan, number: int, draft: Draft, site: Site, beside: int) -> Plan:
    draft = with_host(draft, plan.host_pages)
    first = sum(stage.ranks for stage in plan.stages[:number])
    old = plan.stages[number]
    made = ranks_of_draft(draft, site.machine, plan.pages)
    ranks = (*plan.ranks[:first], *made, *plan.ranks[first + old.ranks :])
    threads = 1 if draft.cuda else max(1, site.machine.cpu.usable_cores // (1 + beside))
    stage = stage_of(draft, site, old.span, threads)
    stages = (*plan.stages[:number], stage, *plan.stages[number + 1 :])
    moved = f"Stage {number + 1} has moved from {old.name} to {site.name}."
    return changed(
        plan,
        tensor_parallel=stages[0].ranks,
        ranks=tuple(changed(rank, rank=count) for count, rank in enumerate(ranks)),
        stages=stages,
        page_bytes=sum(rank.page_bytes for rank in ranks),
        threads=sum(one.threads for one in stages),
        reasons=(*plan.reasons, moved),
    )
