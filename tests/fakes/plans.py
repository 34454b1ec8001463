"""A Plan of no machine in particular, for tests that need one and care for little of it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from backend.measured_rank import MeasuredRank
from backend.planner.plan import MemoryTerm, Plan, Rank

_PLAN = Plan(
    model="a model",
    architecture="LlamaForCausalLM",
    dtype="bfloat16",
    weight_format="model",
    kv_format="model",
    tensor_parallel=1,
    pipeline_stages=1,
    ranks=(Rank(0, "cpu", ()),),
    max_context=4096,
    max_sequences=8,
    step_tokens=512,
    page_tokens=16,
    page_bytes=1,
    pages=100,
    token_bytes=1,
    host_pages=0,
    disk_bytes=0,
    cache_dir="",
    threads=2,
    reasons=(),
)


def plan(**changes: Any) -> Plan:
    """The Plan with these fields instead."""
    return replace(_PLAN, **changes)


def measured_plan() -> dict[str, Any]:
    """An engine of `/plan` with two ranks on GPUs, which took a little else than was predicted."""
    names = ("libraries", "weights", "activations", "communication", "kv")
    predicted = tuple(mebibytes << 20 for mebibytes in (900, 16_384, 640, 464, 40_960))
    found = tuple(mebibytes << 20 for mebibytes in (934, 16_402, 512, 464, 40_960))

    def terms(amounts: tuple[int, ...]) -> tuple[MemoryTerm, ...]:
        return tuple(MemoryTerm(name, amount) for name, amount in zip(names, amounts, strict=True))

    ranks = tuple(Rank(rank, f"cuda:{rank}", terms(predicted)) for rank in (0, 1))
    made = plan(model="org/large", tensor_parallel=2, ranks=ranks)
    measured = tuple(MeasuredRank(rank, f"cuda:{rank}", terms(found), sum(found) + (3 << 20)) for rank in (0, 1))
    return msgspec.to_builtins({"model": "org/large", "plan": made, "measured": measured})
