"""A Plan of no machine in particular, for tests that need one and care for little of it."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from backend.planner.plan import Plan, Rank

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
