"""Layers in host memory: only when asked for, no more than asked or needed, and with what they cost said beforehand."""

from __future__ import annotations

import re
from dataclasses import replace as changed
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backend.errors import OutOfMemoryError, SettingError, ShardwiseError
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory
from backend.planner.explain import explain
from backend.planner.hosted import spread
from backend.planner.plan import HostedLayers, Plan
from quant.weight_sizes import LinearShape
from tests.backend.planner.test_decide import plan_of
from tests.backend.planner.test_ranks import term, total
from tests.fakes.machines import GIB, consumer, cpu_machine, gpu_machine, paired_a100, pcie_3090, unequal
from tests.fakes.models import LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B

ONE = gpu_machine(*consumer(1))
LAYER_8B = sum((LLAMA_8B.query_parameters[0], LLAMA_8B.key_parameters[0], 3 * 4096 * 14336, 2 * 4096)) * 2
# PCIe 4 of 16 lanes: 31.5 GB/s as built, of which four fifths.
RATE = 0.8 * 16 * 1.969


def with_memory(machine: Machine, available: int) -> Machine:
    return replace(machine, memory=Memory(2 * available, available))


def hosted(plan: Plan) -> HostedLayers:
    assert plan.hosted is not None
    return plan.hosted


def test_nothing_is_hosted_unless_asked_and_the_refusal_says_how_and_at_what_cost() -> None:
    assert plan_of(ONE, LLAMA_8B).hosted is None
    with pytest.raises(OutOfMemoryError, match="its weights need") as refused:
        plan_of(ONE, QWEN3_30B_A3B)
    wanted = r"or --host-weights auto \((\d+) of 48 layers in host memory: a step then takes (\S+) s or more\)"
    offer = re.search(wanted, refused.value.hint)
    assert offer
    taken = hosted(plan_of(ONE, QWEN3_30B_A3B, host_weights=None))
    assert (int(offer[1]), float(offer[2])) == (len(taken.layers), pytest.approx(taken.seconds, rel=0.01))


def test_the_refusal_does_not_offer_what_would_not_work() -> None:
    for machine, model in ((with_memory(ONE, 30 * GIB), QWEN3_30B_A3B), (cpu_machine(8 * GIB), LLAMA_8B),
                           (ONE, changed(QWEN3_30B_A3B, layer_parameters=()))):  # fmt: skip
        with pytest.raises(OutOfMemoryError) as refused:
            plan_of(machine, model)
        assert "host-weights" not in refused.value.hint


def test_auto_hosts_nothing_where_the_model_fits() -> None:
    assert plan_of(ONE, LLAMA_8B, host_weights=None) == plan_of(ONE, LLAMA_8B)
    assert plan_of(cpu_machine(40 * GIB), LLAMA_8B, host_weights=None).hosted is None


def test_auto_hosts_as_few_layers_as_leave_room_for_a_useful_context() -> None:
    plan = plan_of(ONE, QWEN3_30B_A3B, host_weights=None)
    assert plan.max_context >= 8192
    fewer = len(hosted(plan).layers) - 1
    size = hosted(plan).host_bytes * fewer // (fewer + 1)
    assert len(hosted(plan_of(ONE, QWEN3_30B_A3B, host_weights=size + 1000, max_context=256)).layers) == fewer
    with pytest.raises(OutOfMemoryError):
        plan_of(ONE, QWEN3_30B_A3B, host_weights=size + 1000, max_context=8192)
    longer = hosted(plan_of(ONE, QWEN3_30B_A3B, host_weights=None, max_context=40_000))
    assert len(longer.layers) > len(hosted(plan).layers)
    pool = hosted(plan_of(ONE, QWEN3_30B_A3B, host_weights=None, kv_pool=8 * GIB))
    assert len(pool.layers) > len(longer.layers)


def test_a_size_is_filled_with_whole_layers_and_no_further() -> None:
    before, plan = plan_of(ONE, LLAMA_8B), plan_of(ONE, LLAMA_8B, host_weights=4 * GIB)
    found, layers = hosted(plan), 4 * GIB // LAYER_8B
    assert found.layers == spread(layers, 32)
    assert found.host_bytes == found.step_bytes == pytest.approx(layers * LAYER_8B, rel=1e-6)
    assert found.freed_bytes == pytest.approx((layers - 2) * LAYER_8B, rel=1e-6)
    assert term(plan, 0, "weights") == term(before, 0, "weights") - found.host_bytes
    assert term(plan, 0, "streaming") == pytest.approx(2 * LAYER_8B, rel=1e-6)
    assert found.rate == pytest.approx(RATE, rel=1e-3)
    assert found.seconds == pytest.approx(layers * LAYER_8B / RATE / 1e9, rel=1e-3)
    assert plan.pages - before.pages == pytest.approx(found.freed_bytes / plan.page_bytes, abs=1)
    assert hosted(plan_of(ONE, LLAMA_8B, host_weights=100 * GIB)).layers == tuple(range(32))


def test_of_three_layers_one_never_leaves_its_buffer() -> None:
    found = hosted(plan_of(ONE, LLAMA_8B, host_weights=4 * LAYER_8B - 1))
    assert len(found.layers) == 3
    assert found.step_bytes == pytest.approx(2 * LAYER_8B, rel=1e-6)


def test_the_plan_says_what_it_costs() -> None:
    plan = plan_of(ONE, LLAMA_8B, host_weights=4 * GIB)
    (sentence,) = [reason for reason in plan.reasons if "host memory" in reason]
    for words in ("9 of 32 layers", "as --host-weights asks", "3.66 GiB there", "2.84 GiB less on the GPU", "156 ms",
                  "25.2 GB/s", "assumed"):  # fmt: skip
        assert words in sentence
    assert "streamed   9 of 32 layers" in explain(plan)
    assert "because the model does not fit" in " ".join(plan_of(ONE, QWEN3_30B_A3B, host_weights=None).reasons)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_each_rank_streams_its_share() -> None:
    machine = with_memory(pcie_3090(), 300 * GIB)
    plan = plan_of(machine, LLAMA_70B, host_weights=None)
    found = hosted(plan)
    assert plan.tensor_parallel == 3
    weights = sum(term(plan, rank, "weights") for rank in range(3))
    assert weights + found.host_bytes == pytest.approx(2 * LLAMA_70B.parameters, rel=0.01)
    # The ranks copy side by side.
    assert found.seconds == pytest.approx(found.step_bytes / 3 / RATE / 1e9, rel=0.15)
    assert found.seconds >= found.step_bytes / 3 / RATE / 1e9
    assert "less on the GPUs" in " ".join(plan.reasons)
    # Streaming over a slot of four lanes, a rank holds the others up.
    slow = replace(machine, gpus=(replace(machine.gpus[0], pcie_width=4), *machine.gpus[1:]))
    assert hosted(plan_of(slow, LLAMA_70B, host_weights=None)).seconds > 3 * found.seconds


def test_quantized_layers_take_what_their_format_takes() -> None:
    kept = LinearShape(128_256, 4096, kept=True)
    shapes = ((LinearShape(4096, 4096), 64), (LinearShape(1024, 4096), 64), (LinearShape(14336, 4096), 64),
              (LinearShape(4096, 14336), 32), (kept, 1))  # fmt: skip
    model = changed(LLAMA_8B, linears=shapes)
    size = 100 * GIB
    whole, small = (hosted(plan_of(ONE, model, weights=name, host_weights=size)) for name in ("model", "nf4"))
    assert small.host_bytes == pytest.approx(whole.host_bytes * (0.5 + 4 / 64) / 2, rel=0.01)


def test_formats_come_before_host_memory_and_the_smallest_of_them_with_it() -> None:
    linears = ((LinearShape(4096, 4096), 2 * 64), (LinearShape(14336, 4096), 3 * 32))
    model = changed(LLAMA_8B, linears=linears)
    options: dict[str, Any] = {"weights": "auto", "host_weights": None, "step_tokens": 512}
    fits = plan_of(gpu_machine(*consumer(1, free=14 * GIB)), model, **options)
    assert (fits.weight_format, fits.hosted) == ("int8", None)
    large = plan_of(gpu_machine(*consumer(1, free=6 * GIB)), model, **options)
    assert large.weight_format == "nf4"
    assert hosted(large).layers


def test_host_memory_must_hold_the_layers_beside_the_cache() -> None:
    with pytest.raises(OutOfMemoryError, match="The layers do not fit main memory: they need"):
        plan_of(with_memory(ONE, 40 * GIB), QWEN3_30B_A3B, host_weights=None)
    plan = plan_of(ONE, QWEN3_30B_A3B, host_weights=None)
    free = ONE.memory.available - hosted(plan).host_bytes
    assert 0.09 * free < plan.host_pages * plan.page_bytes <= 0.1 * free
    with pytest.raises(OutOfMemoryError, match="The host cache does not fit"):
        plan_of(ONE, QWEN3_30B_A3B, host_weights=None, host_cache=20 * GIB)


@pytest.mark.parametrize(
    ("machine", "options", "words"),
    [
        (cpu_machine(40 * GIB), {"host_weights": GIB}, "--host-weights needs a GPU"),
        (ONE, {"host_weights": GIB}, "fewest that help: 1249 MiB"),
        (ONE, {"host_weights": -1}, "--host-weights -1 is too small"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(machine: Machine, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        plan_of(machine, LLAMA_8B, **options)
    shallow = changed(LLAMA_8B, layer_parameters=LLAMA_8B.layer_parameters[:2])
    with pytest.raises(SettingError, match="--host-weights cannot serve this model"):
        plan_of(ONE, shallow, host_weights=GIB)


@given(st.integers(3, 200).flatmap(lambda total: st.tuples(st.integers(3, total), st.just(total))))
def test_layers_are_spread_evenly(case: tuple[int, int]) -> None:
    count, layers = case
    chosen = spread(count, layers)
    assert len(set(chosen)) == count
    assert list(chosen) == sorted(chosen)
    assert all(0 <= number < layers for number in chosen)
    around = [*chosen, chosen[0] + layers]  # the next step's first follows the last
    gaps = [after - before for before, after in pairwise(around)]
    assert max(gaps) - min(gaps) <= 1


@given(
    st.sampled_from([ONE, pcie_3090(), unequal(), paired_a100()]),
    st.sampled_from([LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B]),
    st.sampled_from([None, *(size * GIB for size in (2, 10, 40, 200))]),
    st.integers(8, 300),
    st.fixed_dictionaries({}, optional={"tensor_parallel": st.integers(1, 4), "max_context": st.integers(256, 40_000)}),
)
@settings(max_examples=100, deadline=None)
def test_no_device_and_no_host_is_promised_too_much(
    machine: Machine, model: Any, size: int | None, memory: int, options: dict[str, Any]
) -> None:
    try:
        plan = plan_of(with_memory(machine, memory * GIB), model, host_weights=size, **options)
    except ShardwiseError:
        return
    for rank in plan.ranks:
        assert all(one.bytes >= 0 for one in rank.memory)
        assert total(plan, rank.rank) <= 0.9 * machine.gpus[int(rank.device[5:])].free
    host = plan.hosted.host_bytes if plan.hosted else 0
    assert host + plan.host_pages * plan.page_bytes <= 0.9 * memory * GIB
    assert size is None or host <= size
