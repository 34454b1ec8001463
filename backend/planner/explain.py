"""explain: a Plan as text that a person reads in a terminal."""

from __future__ import annotations

from backend.planner.plan import HostedLayers, Plan, Rank
from backend.planner.units import human_bytes


def explain(plan: Plan) -> str:
    """The plan as lines: what is served and how, memory by device and term, and the reasons."""
    rows = [
        ("model", f"{plan.model} ({plan.architecture})"),
        ("devices", ", ".join(rank.device for rank in plan.ranks)),
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
    for rank in plan.ranks:
        lines += ["", *_memory_lines(rank, plan)]
    return "\n".join([*lines, "", "why", *(f"  - {reason}" for reason in plan.reasons)])


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
        f"memory of rank {rank.rank} on {rank.device}{_parts(rank, plan)}",
        *(f"  {name:<12} {human_bytes(count):>10}" for name, count in terms),
    ]


def _parts(rank: Rank, plan: Plan) -> str:
    """What a rank of several has of the model."""
    if len(plan.ranks) == 1:
        return ""
    attention = rank.attention / sum(one.attention for one in plan.ranks)
    mlp = rank.mlp / sum(one.mlp for one in plan.ranks)
    return f", with {attention:.1%} of attention, {mlp:.1%} of the rest, {human_bytes(rank.page_bytes)} of a page"
