"""stage_plan: the Plan as the ranks of one stage see it: a model of its layers only, on its machine. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from backend.planner.plan import Plan, Rank, Stage


def ranks_of(plan: Plan, number: int) -> tuple[Rank, ...]:
    """The ranks of a stage, numbered as the whole Plan does."""
    first = sum(stage.ranks for stage in plan.stages[:number])
    return plan.ranks[first : first + plan.stages[number].ranks]


def stage_plan(plan: Plan, number: int) -> Plan:
    """A Plan of one stage whose ranks count from 0; pages are counted alike on all stages."""
    stage: Stage = plan.stages[number]
    ranks = tuple(replace(rank, rank=count) for count, rank in enumerate(ranks_of(plan, number)))
    return replace(
        plan,
        tensor_parallel=len(ranks),
        pipeline_stages=1,
        stages=(),
        ranks=ranks,
        page_bytes=sum(rank.page_bytes for rank in ranks),
        threads=stage.threads,
        visible_gpus=stage.visible_gpus,
        peer_writes=stage.peer_writes,
    )
