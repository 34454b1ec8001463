"""explain: a Plan as text that a person reads in a terminal."""

from __future__ import annotations

from backend.planner.plan import HostedLayers, Plan, Rank
from backend.planner.stage_plan import ranks_of
from backend.planner.units import human_bytes


def explain(plan: Plan) -> str:
    """The plan as lines: what is served and how, memory by device and term, and the reasons."""
    rows = [
        ("model", f"{plan.model} ({plan.architecture})"),
        ("devices", _devices(plan)),
        ("parallel", f"tensor {plan.tensor_parallel}, stages {plan.pipeline_stages}, experts {plan.experts}"),
        ("dtype", plan.dtype),
        ("formats", f"weights {plan.weight_format}, kv {plan.kv_format}"),
        ("context", f"{plan.max_context:,} tokens"),
        ("sequences", f"{plan.max_sequences:,} in a step of {plan.step_tokens:,} tokens"),
        (
            "pages",
            f"{plan.pages:,} of {plan.page_tokens} tokens and {human_bytes(plan.page_bytes)}, "
            f"{human_bytes(plan.pages * plan.page_bytes)} in all",
        ),
        ("token", f"{plan.token_bytes:,} bytes of kv over all layers, scales included"),
        *([("streamed", _streamed(plan.hosted))] if plan.hosted else []),
        ("host cache", _host(plan)),
        ("disk cache", f"{human_bytes(plan.disk_bytes)} in {plan.cache_dir}" if plan.disk_bytes else "none"),
        ("threads", str(plan.threads)),
    ]
    lines = [f"{name:<10} {value}" for name, value in rows]
    if plan.stages:
        lines += ["", "stages", *_stage_lines(plan)]
    for rank in plan.ranks:
        lines += ["", *_memory_lines(rank, plan)]
    return "\n".join([*lines, "", "why", *(f"  - {reason}" for reason in plan.reasons)])


def _devices(plan: Plan) -> str:
    """Of several machines, each with its own."""
    if not plan.stages:
        return ", ".join(rank.device for rank in plan.ranks)
    found: dict[str, list[str]] = {}
    for number, stage in enumerate(plan.stages):
        found.setdefault(stage.name, []).extend(rank.device for rank in ranks_of(plan, number))
    return "; ".join(f"{name}: {', '.join(dict.fromkeys(devices))}" for name, devices in found.items())


def _stage_lines(plan: Plan) -> list[str]:
    """One a stage: its machine, layers, ranks, and what its devices hold."""
    rows = [_stage_row(plan, number) for number in range(len(plan.stages))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _stage_row(plan: Plan, number: int) -> tuple[str, ...]:
    stage, ranks = plan.stages[number], ranks_of(plan, number)
    terms = [term for rank in ranks for term in rank.memory]
    weights, pages = (sum(term.bytes for term in terms if term.name == name) for name in ("weights", "kv"))
    devices = ", ".join(dict.fromkeys(rank.device for rank in ranks))
    threads = f", {stage.threads} thread{'s' if stage.threads > 1 else ''}" if devices == "cpu" else ""
    return (
        f"{number + 1}",
        f"layers {stage.span.first + 1} to {stage.span.stop}",
        f"on {stage.name}",
        f"{devices}{threads}",
        f"{human_bytes(weights)} of weights",
        f"{human_bytes(pages)} of pages",
    )


def _streamed(hosted: HostedLayers) -> str:
    return (
        f"{len(hosted.layers)} of {hosted.among} layers from host memory, {human_bytes(hosted.host_bytes)}; a step "
        f"takes at least {hosted.seconds * 1000:,.0f} ms at {hosted.rate:.3g} GB/s (assumed)"
    )


def _host(plan: Plan) -> str:
    if not plan.host_pages:
        return "none"
    return f"{plan.host_pages:,} pages, {human_bytes(plan.host_pages * plan.page_bytes)}"


def _memory_lines(rank: Rank, plan: Plan) -> list[str]:
    total = sum(term.bytes for term in rank.memory)
    terms = [(term.name, term.bytes) for term in rank.memory] + [("total", total)]
    return [
        f"memory of rank {rank.rank} on {rank.device}{_where(rank, plan)}{_parts(rank, plan)}",
        *(f"  {name:<12} {human_bytes(count):>10}" for name, count in terms),
    ]


def _stage_of(rank: Rank, plan: Plan) -> int:
    return next(number for number in range(len(plan.stages)) if rank in ranks_of(plan, number))


def _where(rank: Rank, plan: Plan) -> str:
    if not plan.stages:
        return ""
    number = _stage_of(rank, plan)
    return f" of {plan.stages[number].name}, stage {number + 1}"


def _beside(rank: Rank, plan: Plan) -> tuple[Rank, ...]:
    """The ranks that share its layers."""
    return ranks_of(plan, _stage_of(rank, plan)) if plan.stages else plan.ranks


def _parts(rank: Rank, plan: Plan) -> str:
    """What a rank of several has of the model."""
    beside = _beside(rank, plan)
    if len(beside) == 1:
        return ""
    attention = rank.attention / sum(one.attention for one in beside)
    mlp = rank.mlp / sum(one.mlp for one in beside)
    return f", with {attention:.1%} of attention, {mlp:.1%} of the rest, {human_bytes(rank.page_bytes)} of a page"
