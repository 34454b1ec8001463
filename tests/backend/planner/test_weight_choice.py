"""Which format the weights get: as asked, or the first that fits; and what each of them takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.machine import Machine
from backend.planner import memory
from backend.planner.decide import decide
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from quant.weight_sizes import LinearShape
from tests.backend.planner.test_decide import FILES, MODELS
from tests.fakes.machines import GIB, cpu_machine, gpu, gpu_machine

LAYER = (
    (LinearShape(4096, 4096), 64),
    (LinearShape(1024, 4096), 64),
    (LinearShape(14336, 4096), 64),
    (LinearShape(4096, 14336), 32),
    (LinearShape(49152, 4096, kept=True), 1),
)
SEVEN_BILLION = dataclasses.replace(MODELS["seven billion"], linears=LAYER)


def plan_of(machine: Machine, facts: ModelFacts = SEVEN_BILLION, **options: Any) -> Plan:
    return decide(EngineSettings(files=FILES, **options), facts, machine)


def weights_of(plan: Plan) -> int:
    return next(term.bytes for term in plan.ranks[0].memory if term.name == "weights")


def test_the_weights_term_is_that_of_the_format() -> None:
    machine = gpu_machine(gpu(free=40 * GIB, capability=(9, 0)))
    found = {name: weights_of(plan_of(machine, weights=name)) for name in ("model", "int8", "nf4", "fp8")}
    inside = sum(count * shape.columns * shape.depth for shape, count in LAYER if not shape.kept)
    columns = sum(count * shape.columns for shape, count in LAYER if not shape.kept)
    outside = SEVEN_BILLION.parameters - inside
    assert found["model"] == 2 * SEVEN_BILLION.parameters
    assert found["int8"] == found["fp8"] == 2 * outside + inside + 4 * columns
    assert found["nf4"] == 2 * outside + inside // 2 + inside // 64 * 4


@pytest.mark.parametrize(("free", "taken"), [(40, "model"), (12, "int8"), (7, "nf4")])
def test_auto_takes_the_first_that_fits_and_says_why(free: int, taken: str) -> None:
    plan = plan_of(gpu_machine(gpu(free=free * GIB)), weights="auto", step_tokens=512)
    assert plan.weight_format == taken
    (reason,) = [reason for reason in plan.reasons if reason.startswith("The weights ")]
    assert "they fit" in reason if taken == "model" else f"The weights are {taken}: as model" in reason


def test_auto_leaves_out_what_the_gpu_does_not_multiply() -> None:
    plan = plan_of(gpu_machine(gpu(free=12 * GIB, capability=(6, 1))), weights="auto", step_tokens=512)
    assert plan.weight_format == "nf4"


def test_a_plan_that_is_carried_on_keeps_what_auto_took() -> None:
    machine = gpu_machine(gpu(free=40 * GIB))
    settings = EngineSettings(files=FILES, weights="auto")
    assert decide(settings, SEVEN_BILLION, machine, held="int8").weight_format == "int8"
    assert decide(EngineSettings(files=FILES), SEVEN_BILLION, machine, held="model").weight_format == "model"


def test_what_no_format_makes_fit_is_refused_as_the_smallest() -> None:
    with pytest.raises(OutOfMemoryError, match="a smaller or more strongly quantized model"):
        plan_of(gpu_machine(gpu(free=3 * GIB)), weights="auto")


def test_a_refusal_names_the_format_that_would_fit() -> None:
    with pytest.raises(OutOfMemoryError, match=r"--weights int8 \(.* GiB\), or free memory"):
        plan_of(gpu_machine(gpu(free=13 * GIB)))
    with pytest.raises(OutOfMemoryError, match=r"--weights nf4 \("):
        plan_of(gpu_machine(gpu(free=7 * GIB)), weights="int8")


def test_what_was_asked_for_is_obeyed_and_said() -> None:
    plan = plan_of(cpu_machine(available=64 * GIB), weights="int8")
    assert plan.weight_format == "int8"
    assert "The weights are int8, as --weights asks." in plan.reasons
    plain = plan_of(cpu_machine(available=64 * GIB))
    assert plain.weight_format == "model"
    assert not [reason for reason in plain.reasons if reason.startswith("The weights ")]


@pytest.mark.parametrize(
    ("weights", "capability", "words"),
    [("fp8", (8, 6), "8.6"), ("int8", (7, 0), "Turing"), ("nf4", (5, 2), "Pascal")],
)
def test_a_gpu_that_does_not_multiply_the_format_is_named(
    weights: str, capability: tuple[int, int], words: str
) -> None:
    with pytest.raises(SettingError, match=f"--weights {weights} needs a GPU") as refused:
        plan_of(gpu_machine(gpu(capability=capability)), weights=weights)
    assert words in str(refused.value)
    assert refused.value.hint.startswith("Use --weights ")


def test_products_over_quantized_weights_count_as_activations() -> None:
    # nf4's product of many rows widens the whole weight; gate and up are one.
    assert memory.product_bytes(SEVEN_BILLION, "bfloat16", "nf4", cuda=True) == 2 * 14336 * 4096 * 2
    assert memory.product_bytes(SEVEN_BILLION, "bfloat16", "model", cuda=True) == 0
