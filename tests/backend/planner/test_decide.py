from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError, ShardwiseError
from backend.hardware.machine import Machine
from backend.library.files import ModelFiles
from backend.planner import memory
from backend.planner.decide import decide
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from kvcache.cache_manager import CacheManager
from kvcache.layout import Keeps, LayerCache, build_layout
from quant.kv_format import parse_kv_formats
from tests.fakes.machines import GIB, cpu_machine, gpu, gpu_machine

FILES = ModelFiles(name="starter", format="gguf", weights=("/m.gguf",), folder="/m", bytes=1)
FULL = LayerCache(Keeps.FULL, None, kv_heads=3, key_size=64, value_size=64)
SLIDING = LayerCache(Keeps.SLIDING, 128, kv_heads=3, key_size=64, value_size=64)
SMOLLM2 = ModelFacts(
    architecture="LlamaForCausalLM",
    layers=(FULL,) * 30,
    heads=(9,) * 30,
    hidden=576,
    intermediate=1536,
    vocabulary=49152,
    max_positions=8192,
    parameters=134_515_008,
    native_dtype="bfloat16",
)
MODELS = {
    "smollm2": SMOLLM2,
    "gemma-like": dataclasses.replace(SMOLLM2, layers=(SLIDING, SLIDING, SLIDING, FULL) * 6, heads=(9,) * 24),
    "seven billion": dataclasses.replace(
        SMOLLM2,
        layers=(LayerCache(Keeps.FULL, None, 8, 128, 128),) * 32,
        heads=(32,) * 32,
        hidden=4096,
        intermediate=14336,
        parameters=7_240_000_000,
        max_positions=32768,
    ),
}


def plan_of(machine: Machine | None = None, facts: ModelFacts = SMOLLM2, **options: Any) -> Plan:
    return decide(EngineSettings(files=FILES, **options), facts, machine or cpu_machine())


def total(plan: Plan) -> int:
    return sum(term.bytes for term in plan.ranks[0].memory)


def test_the_starter_on_a_small_machine() -> None:
    plan = plan_of()
    assert plan.ranks[0].device == "cpu"
    assert (plan.dtype, plan.threads, plan.max_context) == ("bfloat16", 2, 8192)
    assert (plan.weight_format, plan.kv_format) == ("model", "model")
    assert plan.page_bytes == 30 * 16 * 3 * (64 + 64) * 2
    terms = {term.name: term.bytes for term in plan.ranks[0].memory}
    assert terms["weights"] == 134_515_008 * 2
    assert terms["kv"] == plan.pages * plan.page_bytes <= 20 * GIB // 4
    assert all(reason.endswith(".") for reason in plan.reasons)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


@pytest.mark.parametrize(
    ("machine", "dtype"),
    [
        (cpu_machine(), "bfloat16"),
        (cpu_machine(features=("amx_bf16",)), "bfloat16"),
        (cpu_machine(features=("bf16",)), "bfloat16"),
        (cpu_machine(features=("avx512f", "avx2")), "float32"),
        (gpu_machine(gpu(capability=(8, 0))), "bfloat16"),
        (gpu_machine(gpu(capability=(12, 0))), "bfloat16"),
        (gpu_machine(gpu(capability=(7, 5))), "float16"),
    ],
)
def test_the_dtype_is_what_the_device_multiplies(machine: Machine, dtype: str) -> None:
    assert plan_of(machine).dtype == dtype


def test_the_gpu_with_the_most_free_memory_computes() -> None:
    machine = gpu_machine(gpu(0, free=3 * GIB), gpu(1, free=20 * GIB), gpu(2, free=20 * GIB))
    plan = plan_of(machine)
    assert plan.ranks[0].device == "cuda:1"
    assert plan_of(machine, device="cpu").ranks[0].device == "cpu"
    assert 0.88 * 20 * GIB < total(plan) <= 0.9 * 20 * GIB


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "int4"}, "--weights int4 is not known"),
        ({"weights": "fp8"}, "--weights fp8 needs a GPU"),
        ({"kv_format": "nf4"}, "--kv-format nf4"),
        ({"kv_format": "k=int8,k=fp8"}, "k=FORMAT,v=FORMAT"),
        ({"host_cache": -1}, "--host-cache -1"),
        ({"host_cache": 4096}, "--host-cache 1MiB or more"),
        ({"disk_cache": 4096, "cache_dir": "/cache"}, "--disk-cache 1MiB or more"),
        ({"disk_cache": GIB}, "--cache-dir"),
        ({"device": "cuda"}, "NVIDIA GPU"),
        ({"max_context": 8193}, "8192 positions"),
        ({"max_context": 1}, "--max-context 1"),
        ({"kv_pool": -5}, "--kv-pool -5"),
        ({"threads": 3}, "--threads 3"),
        ({"max_sequences": 20, "step_tokens": 10}, "--step-tokens 10"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        plan_of(**options)


def test_a_missing_gpu_is_explained_by_the_drivers_problem() -> None:
    machine = msgspec.structs.replace(cpu_machine(), gpu_problem="The NVIDIA driver did not answer within 15 s.")
    with pytest.raises(SettingError, match="did not answer"):
        plan_of(machine, device="cuda")
    assert "did not answer" in plan_of(machine).reasons[0]


@pytest.mark.parametrize(
    ("machine", "options", "term"),
    [
        (cpu_machine(available=8 * GIB), {}, "weights"),
        (gpu_machine(gpu(free=12 * GIB)), {}, "weights"),
        (cpu_machine(available=20 * GIB), {"step_tokens": 100_000}, "activations"),
        (cpu_machine(available=20 * GIB), {"max_context": 32768}, "kv"),
        (cpu_machine(available=20 * GIB), {"kv_pool": 8 * GIB}, "kv"),
        (cpu_machine(available=20 * GIB), {"kv_pool": 1 << 20}, "kv"),
    ],
)
def test_what_does_not_fit_names_the_term_the_numbers_and_two_ways(
    machine: Machine, options: dict[str, Any], term: str
) -> None:
    with pytest.raises(OutOfMemoryError) as refused:
        plan_of(machine, MODELS["seven billion"], **options)
    assert f"its {term} need" in refused.value.what
    assert "iB" in refused.value.what
    assert "iB" in refused.value.why
    assert refused.value.hint.startswith("Two ways out: ")
    assert " or " in refused.value.hint


def test_a_short_pool_shortens_an_automatic_context_and_says_so() -> None:
    plan = plan_of(kv_pool=40 << 20)
    assert plan.max_context == plan.pages * 16 < 8192
    assert any("pool holds no more" in reason for reason in plan.reasons)


def test_the_weights_that_were_measured_count() -> None:
    measured = decide(EngineSettings(files=FILES), SMOLLM2, cpu_machine(), weights_bytes=12345)
    assert measured.ranks[0].memory[0].bytes == 12345


def test_a_window_needs_fewer_pages_than_the_whole_sequence() -> None:
    layout = build_layout((FULL, SLIDING), 2, 16)
    assert memory.pages_of_context(layout, 64, 512) == 2 * 4
    assert memory.pages_of_context(layout, 8192, 512) == 512 + (127 + 512 + 14) // 16 + 1


@given(st.integers(0, 3000), st.integers(1, 600), st.sampled_from(sorted(MODELS)))
def test_context_of_pages_is_the_longest_that_fits(pages: int, step_tokens: int, name: str) -> None:
    layout = build_layout(MODELS[name].layers, 2, 16)
    context = memory.context_of_pages(layout, pages, step_tokens, 20_000)
    assert memory.pages_of_context(layout, context, step_tokens) <= pages
    assert context == 20_000 or memory.pages_of_context(layout, context + 1, step_tokens) > pages


CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "device": st.sampled_from(["auto", "auto", "cuda", "cpu"]),
        "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
        "max_context": st.integers(2, 8192),
        "max_sequences": st.integers(1, 300),
        "kv_pool": st.integers(1, 8 * GIB),
        "kv_format": st.sampled_from(["model", "fp8", "int8", "k=int8,v=fp8", "k=model,v=int8"]),
        "host_cache": st.sampled_from([0, 64 << 20, GIB, 30 * GIB]),
        "step_tokens": st.integers(200, 9000),
        "threads": st.integers(1, 2),
    },
)


@given(
    CHOICES,
    st.sampled_from(sorted(MODELS)),
    st.booleans(),
    st.integers(GIB, 60 * GIB),
    st.integers(0, 60 * GIB),
)
@settings(max_examples=300, deadline=None)
def test_plans_keep_their_promises(options: dict[str, Any], name: str, cuda: bool, free: int, more: int) -> None:
    facts = MODELS[name]

    def machine(free_bytes: int) -> Machine:
        return gpu_machine(gpu(total=200 * GIB, free=free_bytes)) if cuda else cpu_machine(free_bytes)

    try:
        plan = plan_of(machine(free), facts, **options)
    except ShardwiseError:
        return  # refused, which is a promise too
    for option, value in options.items():
        if value == "auto":
            continue
        if option == "device":
            assert plan.ranks[0].device.startswith(value)
        elif option == "host_cache":
            assert value - plan.page_bytes < plan.host_pages * plan.page_bytes <= value
        elif option == "kv_pool":
            assert value - plan.page_bytes < plan.pages * plan.page_bytes <= value
        else:
            assert getattr(plan, option) == value
    device_is_gpu = plan.ranks[0].device != "cpu"
    if device_is_gpu == cuda:
        assert total(plan) <= 0.9 * free
    assert {term.name: term.bytes for term in plan.ranks[0].memory}["kv"] == plan.pages * plan.page_bytes
    layout = build_layout(facts.layers, memory.ELEMENT_BYTES[plan.dtype], 16, parse_kv_formats(plan.kv_format))
    assert CacheManager(layout, plan.pages).most_pages(plan.max_context, plan.step_tokens) <= plan.pages
    assert plan.max_sequences <= plan.step_tokens
    richer = plan_of(machine(free + more), facts, **options)  # raises where more memory would not fit
    assert richer.pages >= plan.pages
    assert richer.max_context >= plan.max_context


def test_a_model_that_is_served_up_to_fewer_positions_than_it_was_made_for_says_why() -> None:
    facts = dataclasses.replace(SMOLLM2, max_positions=2048, positions_reason="Each token chooses 2,048 positions.")
    plan = plan_of(facts=facts)
    assert plan.max_context == 2048
    assert {"The context is 2048.", "Each token chooses 2,048 positions."} < set(plan.reasons)
    with pytest.raises(SettingError) as refused:
        plan_of(facts=facts, max_context=2049)
    assert refused.value.why == "Each token chooses 2,048 positions."
