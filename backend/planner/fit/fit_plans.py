"""fit_plan: what was judged, as the FitPlan that faces show. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from backend.hardware.cluster import Cluster
from backend.planner.draft import RankDraft
from backend.planner.fit.candidate import Candidate, Question
from backend.planner.fit.judged import Judged
from backend.planner.fit.options import serve_options
from backend.planner.fit.reasons import blocked, reasons
from backend.planner.fit.replica import Replica
from backend.planner.fit.report import Cost, FitPlan, GpuUse
from backend.planner.fit.shape import Seat
from backend.planner.plan import MemoryTerm


def fit_plan(asked: Question, one: Judged, cost: Cost | None, plain: bool = False) -> FitPlan:
    """`plain`: whether this is what `serve` takes without options."""
    made = one.candidate
    first = made.replicas[0].first
    served = one.runnable
    return FitPlan(
        replicas=made.shape.replicas,
        stages=made.shape.stages,
        tensor=len(first.ranks) if made.shape.free else made.shape.tensor,
        experts=first.shares.experts,
        weights=made.weights,
        kv_format=made.kv_format,
        hosted=len(first.hosted.layers) if first.hosted else 0,
        devices=tuple(_devices(asked.cluster, made)),
        kv_tokens=sum(kv_tokens(replica, asked.context) for replica in made.replicas),
        largest_context=made.largest_context(asked.model.facts.max_positions),
        concurrency=made.concurrency(asked.context),
        verdict=one.verdict,
        speed=one.speed,
        cost=cost,
        runnable=served,
        blocked="" if served else blocked(asked, one),
        options=serve_options(made.settings) if served and not plain else (),
        reasons=reasons(asked, one),
    )


def kv_tokens(replica: Replica, context: int) -> int:
    """Positions that the pool holds: of one group, those of its pages; of several, those of sequences of `context`."""
    groups = replica.layout.groups
    if len(groups) == 1 and groups[0].window is None:
        return replica.pages * groups[0].page_tokens
    return replica.pages * context // max(1, replica.pages_of(context))


def _devices(cluster: Cluster, made: Candidate) -> Iterator[GpuUse]:
    for replica in made.replicas:
        for stage, (seat, draft) in enumerate(zip(replica.seats, replica.drafts, strict=True)):
            for number, rank in enumerate(draft.ranks):
                yield _use(cluster, seat, stage, number, rank, replica.pages)


def _use(cluster: Cluster, seat: Seat, stage: int, number: int, rank: RankDraft, pages: int) -> GpuUse:
    machine = cluster.machines[seat.machine]
    gpu = seat.gpus[number] if seat.gpus else None
    weights, *others = rank.terms
    terms = [(name, count) for name, count in (weights, ("kv", pages * rank.page_bytes), *others) if count]
    taken = sum(count for _, count in terms)
    return GpuUse(
        machine=seat.machine,
        gpu=gpu,
        name=machine.cpu.name if gpu is None else machine.gpus[gpu].name,
        stage=stage,
        rank=number,
        total=machine.memory.total if gpu is None else machine.gpus[gpu].total,
        usable=rank.target.usable,
        terms=tuple(MemoryTerm(name, count) for name, count in terms),
        unused=rank.target.usable - taken,
    )
