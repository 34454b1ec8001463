"""The plan of a user's own options, judged: its memory is that of the Plan itself, and so is all that was settled."""

from __future__ import annotations

from typing import Any

from backend.engine_settings import EngineSettings
from backend.library.files import ModelFiles
from backend.library.model_table import known_from_catalogue
from backend.planner.decide import decide
from backend.planner.fit.report import FitPlan
from backend.planner.fit.served_plan import served_plan
from backend.planner.plan import Plan
from tests.fakes.machines import dgx_h100
from tests.fakes.models import LLAMA_8B

FILES = ModelFiles(name="llama", format="safetensors", weights=("/m",), folder="/m", bytes=1)


def judged(**options: Any) -> tuple[Plan, FitPlan]:
    """A 70B on four H100 with these options: what `decide` makes of them, and how that is judged."""
    settings, machine = EngineSettings(files=FILES, **options), dgx_h100(4)
    known = known_from_catalogue("meta-llama/Meta-Llama-3.1-70B")
    assert known is not None
    plan = decide(settings, known.facts, machine)
    return plan, served_plan(known.facts, machine, settings, plan)


def test_memory_is_the_plans_own_by_term_and_rank() -> None:
    plan, found = judged(tensor_parallel=4, kv_format="int8")
    assert [device.terms for device in found.devices] == [rank.memory for rank in plan.ranks]
    assert (found.tensor, found.weights, found.kv_format) == (4, "model", "int8")


def test_weights_that_auto_chose_hold() -> None:
    plan, found = judged(tensor_parallel=1, weights="auto")
    assert plan.weight_format != "model"
    assert found.weights == plan.weight_format


def test_a_roomy_plan_is_called_so_and_has_times() -> None:
    _, found = judged(tensor_parallel=4)
    assert found.verdict.kind == "roomy"
    assert found.speed is not None
    assert 0 < found.speed.alone.low <= found.speed.alone.likely <= found.speed.alone.high


def test_a_context_below_the_usual_one_is_judged_as_it_is() -> None:
    settings, machine = EngineSettings(files=FILES, max_context=512, tensor_parallel=1), dgx_h100(1)
    plan = decide(settings, LLAMA_8B, machine)
    found = served_plan(LLAMA_8B, machine, settings, plan)
    assert found.concurrency > 0
    assert "512" in found.verdict.sentence
