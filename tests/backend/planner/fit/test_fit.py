"""What fits: plans beside what `serve` decides, their sums, verdicts that hold when things get easier, their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.cluster import Cluster
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory
from backend.hardware.specification import parse_hardware
from backend.planner.decide import decide
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.bench import Bench
from backend.planner.fit.candidate import Question
from backend.planner.fit.fit import fit
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.report import FitPlan, FitReport
from backend.planner.fit.resolve import resolve
from backend.planner.fit.shapes import Division, shapes
from backend.planner.staged.placing import place_stages
from backend.planner.staged.site import sites_of
from tests.fakes.fit_models import FILES, cluster, known, settings_of
from tests.fakes.machines import (
    GIB,
    bridged_3090,
    consumer,
    cpu_machine,
    dgx_h100,
    gpu_machine,
    paired_a100,
    pcie_3090,
    unequal,
)
from tests.fakes.models import LLAMA_8B, QWEN3_30B_A3B, STARTER

MACHINES = {
    "dgx": dgx_h100(),
    "two": dgx_h100(2),
    "seven": dgx_h100(7),
    "pairs": paired_a100(),
    "bridge": bridged_3090(),
    "three": pcie_3090(),
    "unequal": unequal(),
    "one": gpu_machine(*consumer(1)),
    "none": cpu_machine(200 * GIB, cores=16),
    "small": cpu_machine(6 * GIB),
}
SERVED = ("8b", "70b", "gemma", "gpt-oss", "30b-a3b", "deepseek")


def report(model: KnownModel, *machines: Machine, **ask: Any) -> FitReport:
    return fit(model, cluster(*machines), FitAsk(**ask))


def _own(plan: FitPlan) -> bool:
    return (plan.weights, plan.kv_format) == ("model", "model")


def bytes_of(plan: FitPlan) -> list[dict[str, int]]:
    return [{term.name: term.bytes for term in device.terms} for device in plan.devices]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", [*SERVED, "starter"])
def test_the_plan_that_serve_takes_is_what_decide_answers(machine: str, model: str) -> None:
    it = KnownModel("starter", STARTER) if model == "starter" else known(model)
    it = replace(it, unserved="", states=())
    found = report(it, MACHINES[machine])
    try:
        plan = decide(settings_of(()), it.facts, MACHINES[machine])
    except OutOfMemoryError:
        assert found.serve is None
        return
    assert found.serve is not None
    taken = found.plans[found.serve]
    assert (taken.tensor, taken.stages, taken.replicas) == (plan.tensor_parallel, 1, 1)
    assert (taken.experts, taken.weights, taken.kv_format) == (plan.experts, "model", "model")
    assert taken.options == ()
    assert taken.runnable
    assert min(taken.largest_context, plan.max_context) == plan.max_context == taken.largest_context
    assert bytes_of(taken) == [{term.name: term.bytes for term in rank.memory if term.bytes} for rank in plan.ranks]
    gpus = [int(rank.device.removeprefix("cuda:")) if rank.device != "cpu" else None for rank in plan.ranks]
    assert [device.gpu for device in taken.devices] == gpus
    if len(set(it.facts.layers)) == 1:
        assert taken.kv_tokens == plan.pages * plan.page_tokens


@pytest.mark.parametrize("machine", ["dgx", "three", "unequal", "one", "none"])
@pytest.mark.parametrize("model", ["8b", "30b-a3b", "gemma"])
@pytest.mark.parametrize(("context", "users"), [(8192, 1), (32768, 12)])
def test_decide_accepts_the_options_of_every_plan_that_fits(machine: str, model: str, context: int, users: int) -> None:
    it = replace(known(model), unserved="")
    for plan in report(it, MACHINES[machine], context=context, users=users, goal="cost").plans:
        if not plan.runnable:
            continue
        decided = place_stages(settings_of(plan.options), it.facts, sites_of(cluster(MACHINES[machine])))
        assert decided.pipeline_stages == plan.stages
        assert (decided.tensor_parallel, decided.weight_format) == (plan.tensor, plan.weights)
        assert bytes_of(plan) == [{one.name: one.bytes for one in rank.memory if one.bytes} for rank in decided.ranks]
        if plan.verdict.kind in ("roomy", "fits"):
            assert decided.max_context >= context
            assert decided.max_sequences >= users
            assert plan.concurrency >= users


@pytest.mark.parametrize("hardware", ["2 nodes of 4x A100-80GB, ib-hdr", "3x L40S", "2x RTX-3090", "cpu 64GiB"])
@pytest.mark.parametrize("engine", ["shardwise", "vllm"])
@pytest.mark.parametrize("model", ["70b", "gemma", "deepseek", "hybrid"])
def test_terms_sum_to_what_is_taken_of_every_device(hardware: str, engine: Any, model: str) -> None:
    if engine == "vllm" and hardware.startswith("cpu"):
        with pytest.raises(SettingError, match="cannot be planned"):
            fit(known(model), parse_hardware(hardware), FitAsk(engine=engine))
        return
    found = fit(known(model), parse_hardware(hardware), FitAsk(engine=engine, users=4))
    assert found.plans
    for plan in found.plans:
        assert len(plan.devices) == plan.replicas * plan.stages * plan.tensor
        assert len({(device.machine, device.gpu) for device in plan.devices}) == len(plan.devices)
        for device in plan.devices:
            assert sum(term.bytes for term in device.terms) == device.usable - device.unused
            assert all(term.bytes > 0 for term in device.terms)
            assert device.usable <= device.total
        if plan.verdict.kind in ("roomy", "fits"):
            assert plan.concurrency >= 4
            assert plan.speed is not None
            assert engine == "vllm" or min(device.unused for device in plan.devices) >= 0
    assert msgspec.json.decode(msgspec.json.encode(found), type=FitReport) == found


FITTING = {"roomy", "fits"}
EASIER = st.sampled_from(["memory", "users", "context", "weights", "kv"])


def _kinds(it: KnownModel, place: Cluster, ask: FitAsk, weights: str, kv: str) -> dict[object, bool]:
    """Of every shape, whether it fits."""
    asked = Question(it, place, resolve(it, ask))
    bench = Bench(asked)
    found = {shape: bench.tried(shape, weights, kv) for shape in shapes(place, Division(it.facts))}
    return {shape: one is not None and one.fits for shape, one in found.items()}


def _roomier(machine: Machine, part: float) -> Machine:
    gpus = tuple(changed(gpu, total=int(gpu.total * part), free=int(gpu.free * part)) for gpu in machine.gpus)
    memory = Memory(int(machine.memory.total * part), int(machine.memory.available * part))
    return changed(machine, gpus=gpus, memory=memory)


@settings(max_examples=60, deadline=None)
@given(
    machine=st.sampled_from(["two", "pairs", "bridge", "three", "unequal", "one", "none"]),
    model=st.sampled_from(["8b", "70b", "gemma", "gpt-oss", "30b-a3b"]),
    users=st.integers(2, 12),
    context=st.integers(300, 10_000),
    easier=EASIER,
    part=st.floats(1.01, 2.0),
)
def test_what_fits_still_fits_where_things_are_easier(
    machine: str, model: str, users: int, context: int, easier: str, part: float
) -> None:
    it, place = replace(known(model), unserved="", states=()), cluster(MACHINES[machine])
    ask = FitAsk(users=users, context=context)
    before = _kinds(it, place, ask, "model", "model")
    weights, kv = "model", "model"
    match easier:
        case "memory":
            place = cluster(_roomier(MACHINES[machine], part))
        case "users":
            ask = changed(ask, users=max(1, int(users / part)))
        case "context":
            ask = changed(ask, context=max(256, int(context / part)))
        case "weights":
            weights = "int8"
        case _:
            kv = "int8"
    after = _kinds(it, place, ask, weights, kv)
    assert {shape for shape, fits in before.items() if fits} <= {shape for shape, fits in after.items() if fits}


def test_two_gpus_that_hold_70b_and_little_else_are_called_fragile() -> None:
    for engine in ("shardwise", "vllm"):
        plans = report(known("70b"), dgx_h100(2), engine=engine).plans
        plain = next(one for one in plans if (one.tensor, one.stages, one.hosted) == (2, 1, 0) and _own(one))
        assert plain.verdict.kind == "fragile"
        assert plain.verdict.term == "kv"
        assert 9_000 < plain.largest_context < 13_000
    four = report(known("70b"), dgx_h100(4))
    assert four.best == four.serve == 0
    assert four.plans[0].verdict.kind == "roomy"
    assert not four.ways_out


def test_what_is_too_large_names_the_term_and_its_bytes() -> None:
    found = report(known("405b"), dgx_h100(2), weights=("model",))
    assert found.best is None
    assert found.serve is None
    worst = next(one for one in found.plans if one.tensor == 2)
    assert worst.verdict.kind == "too large"
    assert worst.verdict.term == "weights"
    assert worst.verdict.needed == bytes_of(worst)[0]["weights"] > worst.verdict.available
    assert "weights need" in worst.verdict.sentence
    assert not worst.runnable
    assert worst.speed is None
    assert worst.cost is None


@pytest.mark.parametrize(
    "hardware", ["2 nodes of 2x RTX-3090, 10gbe", "1 node of 1x RTX-4090 and 1 node of 2x RTX-3090"]
)
@pytest.mark.parametrize("model", ["gemma", "30b-a3b"])
def test_placing_accepts_the_options_of_every_plan_over_machines(hardware: str, model: str) -> None:
    machines = parse_hardware(hardware)
    it = replace(known(model), unserved="")
    found = [plan for plan in fit(it, machines, FitAsk()).plans if plan.stages > 1 and plan.runnable]
    assert any(len({device.machine for device in plan.devices}) > 1 for plan in found)
    for plan in found:
        decided = place_stages(settings_of(plan.options), it.facts, sites_of(machines))
        assert (decided.pipeline_stages, decided.weight_format) == (plan.stages, plan.weights)
        assert bytes_of(plan) == [{one.name: one.bytes for one in rank.memory if one.bytes} for rank in decided.ranks]
        assert [device.stage for device in plan.devices] == [
            number for number, stage in enumerate(decided.stages) for _ in range(stage.ranks)
        ]


def test_stages_are_run_and_replicas_are_not() -> None:
    found = fit(known("70b"), parse_hardware("2 nodes of 4x A100-80GB, ib-hdr"), FitAsk(goal="throughput"))
    stages = next(one for one in found.plans if one.stages == 2 and one.tensor == 4)
    assert stages.runnable
    assert stages.options == ("--tp", "4", "--pp", "2")
    assert {device.machine for device in stages.devices} == {0, 1}
    weights = [terms["weights"] for terms in bytes_of(stages)]
    whole = bytes_of(next(one for one in found.plans if one.stages == 1 and one.tensor == 4 and one.replicas == 1))
    assert sum(weights) == pytest.approx(sum(one["weights"] for one in whole), rel=0.002)
    copies = next(one for one in found.plans if one.replicas == 2 and one.tensor == 4)
    assert not copies.runnable
    assert "start 2" in copies.blocked
    assert len(copies.devices) == 8
    assert found.best is not None
    assert found.plans[found.best].runnable


def test_a_model_that_is_not_served_is_planned_with_the_reason() -> None:
    it = known("hybrid")
    assert it.states
    found = report(it, dgx_h100(2))
    assert found.serve is None
    assert found.best is not None
    assert all(not one.runnable and one.blocked == it.unserved for one in found.plans)
    assert all("states" in terms for terms in bytes_of(found.plans[found.best]))
    more = report(it, dgx_h100(2), users=8)
    assert bytes_of(more.plans[0])[0]["states"] == 8 * bytes_of(found.plans[0])[0]["states"]


def test_the_goal_decides_the_order_and_formats_have_to_earn_their_place() -> None:
    it = known("8b")
    for goal in ("latency", "throughput", "cost"):
        found = report(it, dgx_h100(4), goal=goal)
        fitting = [one for one in found.plans if one.verdict.kind in FITTING]
        assert list(found.plans[: len(fitting)]) == fitting
        assert (fitting[0].weights, fitting[0].kv_format) == ("model", "model")
    cheap = report(it, dgx_h100(4), goal="cost").plans
    quick = report(it, dgx_h100(4), goal="latency").plans
    assert cheap[0].cost
    assert quick[0].cost
    assert quick[0].speed
    assert cheap[0].speed
    assert cheap[0].cost.per_million.likely <= quick[0].cost.per_million.likely
    assert quick[0].speed.alone.likely <= cheap[0].speed.alone.likely


def test_formats_that_were_asked_for_are_the_only_ones() -> None:
    found = report(known("8b"), dgx_h100(1), weights=("fp8",), kv_formats=("int8",))
    assert {(one.weights, one.kv_format) for one in found.plans} == {("fp8", "int8")}
    assert found.plans[0].options == ("--tp", "1", "--weights", "fp8", "--kv-format", "int8")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"context": 200_000}, "200000 is more than the model"),
        ({"context": 1}, "--context 1"),
        ({"users": 0}, "--users 0"),
        ({"weights": ("int3",)}, "--weights int3"),
        ({"kv_formats": ("int3",)}, "--kv-format int3"),
        ({"engine": "vllm", "engine_version": "newest"}, "no version of vLLM"),
    ],
)
def test_what_makes_no_sense_is_refused(ask: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        report(known("8b"), dgx_h100(1), **ask)


def test_a_processor_gets_a_pool_for_what_was_asked() -> None:
    it = KnownModel("8b", LLAMA_8B)
    machine = cpu_machine(100 * GIB, cores=16)
    found = report(it, machine, context=32_768, users=10)
    assert found.best is not None
    plan = found.plans[found.best]
    assert plan.concurrency >= 10
    assert "--kv-pool" in plan.options
    assert decide(settings_of(plan.options), LLAMA_8B, machine).pages * 16 >= 327_680


def test_layers_go_to_host_memory_where_nothing_else_fits() -> None:
    roomy = changed(gpu_machine(*consumer(1)), memory=Memory(256 * GIB, 250 * GIB))
    found = report(KnownModel("30b", QWEN3_30B_A3B), roomy, weights=("model",))
    assert found.best is not None
    plan = found.plans[found.best]
    assert plan.hosted
    assert plan.runnable
    assert "--host-weights" in plan.options
    assert plan.verdict.kind in FITTING
    assert any("host memory" in reason for reason in plan.reasons)


@pytest.mark.parametrize("hardware", ["cpu 32GiB", "1x RTX-3090 + 1x RTX-A6000", "2 nodes of 2x H100"])
def test_every_model_of_the_catalogue_gets_an_answer(hardware: str) -> None:
    from backend.library.model_table import catalogue

    place = parse_hardware(hardware)
    for row in catalogue()[::6]:
        found = fit(row.known(), place, FitAsk())
        assert found.plans
        assert all(one.reasons and one.reasons[0].endswith(".") for one in found.plans)
        assert found.best is not None or 1 <= len(found.ways_out) <= 3
        assert FILES.name != found.model
