"""Formats and tiers of the KV cache, as planned: what they hold, what they take, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError
from backend.hardware.machine import Machine
from backend.planner.decide import decide
from backend.planner.kv_choice import KVChoice
from backend.planner.plan import Plan
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from quant.kv_format import parse_kv_formats
from tests.backend.planner.test_decide import FILES, SMOLLM2, plan_of
from tests.fakes.machines import GIB, cpu_machine, gpu, gpu_machine

WIDE = dataclasses.replace(SMOLLM2, layers=(LayerCache(Keeps.FULL, None, 3, 128, 128),) * 30)


def held(**options: Any) -> int:
    plan = plan_of(kv_pool=256 << 20, **options)
    return plan.pages * plan.page_tokens


def terms(plan: Plan) -> dict[str, int]:
    return {term.name: term.bytes for term in plan.ranks[0].memory}


@pytest.mark.parametrize("kv_format", ["int8", "fp8", "k=int8,v=fp8"])
def test_a_fixed_pool_holds_nearly_twice_the_tokens(kv_format: str) -> None:
    assert held(kv_format=kv_format) >= 1.85 * held()
    assert held(kv_format=kv_format, facts=WIDE) >= 1.9 * held(facts=WIDE)


@pytest.mark.parametrize("kv_format", ["model", "int8", "fp8", "k=model,v=int8", "k=int8,v=model"])
def test_a_tokens_bytes_are_what_the_pool_stores(kv_format: str) -> None:
    plan = plan_of(kv_format=kv_format)
    layout = build_layout(SMOLLM2.layers, 2, plan.page_tokens, parse_kv_formats(plan.kv_format))
    pages = PageMemory(layout, 3, torch.bfloat16, torch.device("cpu"))
    assert pages.bytes == 3 * plan.page_bytes == 3 * plan.page_tokens * plan.token_bytes
    views = [view for layer in pages.layers.values() for view in dataclasses.astuple(layer) if view is not None]
    assert sum(view.numel() * view.element_size() for view in views) == pages.bytes  # no byte of a page is unused


def test_auto_says_that_it_will_measure_and_obeys_what_was_measured() -> None:
    before = plan_of(kv_format="auto")
    assert before.kv_format == "model"
    assert any("measured at the start" in reason for reason in before.reasons)
    choice = KVChoice(parse_kv_formats("k=model,v=int8"), "Because it was measured.")
    after = decide(EngineSettings(files=FILES, kv_format="auto"), SMOLLM2, cpu_machine(), measured=choice)
    assert after.kv_format == "k=model,v=int8"
    assert choice.reason in after.reasons
    assert after.token_bytes < before.token_bytes


def test_what_is_asked_does_not_yield_to_what_was_measured() -> None:
    choice = KVChoice(parse_kv_formats("fp8"), "Because it was measured.")
    plan = decide(EngineSettings(files=FILES, kv_format="int8"), SMOLLM2, cpu_machine(), measured=choice)
    assert plan.kv_format == "int8"
    assert choice.reason not in plan.reasons


def test_a_host_cache_is_a_term_on_a_processor_and_none_of_a_gpu() -> None:
    plan = plan_of(host_cache=GIB)
    assert terms(plan)["host cache"] == plan.host_pages * plan.page_bytes
    assert GIB - plan.page_bytes < terms(plan)["host cache"] <= GIB
    beside_gpu = plan_of(gpu_machine(), host_cache=GIB)
    assert beside_gpu.host_pages == plan.host_pages
    assert "host cache" not in terms(beside_gpu)


def test_an_automatic_host_cache_is_a_tenth_of_free_memory_beside_a_gpu_and_none_on_a_processor() -> None:
    plan = plan_of(gpu_machine())
    assert 6.39 * GIB < plan.host_pages * plan.page_bytes <= 6.4 * GIB
    assert any("tenth of the free main memory" in reason for reason in plan.reasons)
    assert plan_of().host_pages == plan_of(gpu_machine(), host_cache=0).host_pages == 0


def test_a_host_cache_takes_from_what_the_pool_may_have() -> None:
    tight = cpu_machine(available=3 * GIB)
    with pytest.raises(OutOfMemoryError) as refused:
        plan_of(tight, host_cache=GIB, kv_pool=GIB)
    assert "its kv need" in refused.value.what
    assert "host cache" in refused.value.why
    assert plan_of(tight, kv_pool=GIB).pages


@pytest.mark.parametrize("machine", [cpu_machine(available=3 * GIB), gpu_machine(gpu(free=20 * GIB))])
def test_a_host_cache_that_does_not_fit_names_numbers_and_two_ways(machine: Machine) -> None:
    with pytest.raises(OutOfMemoryError, match="host cache does not fit main memory") as refused:
        plan_of(machine, host_cache=80 * GIB)
    assert "80 GiB" in refused.value.what
    way = refused.value.hint.removeprefix("Two ways out: --host-cache ").split("MiB")[0]
    # The way out is one as long as a pool is small enough to lie beside it.
    assert plan_of(machine, host_cache=(int(way) - 600) << 20, max_context=256).host_pages


def test_a_disk_tier_is_planned_with_its_folder() -> None:
    plan = plan_of(disk_cache=GIB, cache_dir="/cache")
    assert (plan.disk_bytes, plan.cache_dir) == (GIB, "/cache")
    assert any("--disk-cache" in reason for reason in plan.reasons)
    assert (plan_of(cache_dir="/cache").disk_bytes, plan_of(cache_dir="/cache").cache_dir) == (0, "")
