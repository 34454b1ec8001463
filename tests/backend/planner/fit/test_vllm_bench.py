"""Plans for vLLM: its accounting, its options, and what it cannot divide."""

from __future__ import annotations

from typing import Any

import pytest

from backend.hardware.specification import parse_hardware
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.fit import fit
from backend.planner.fit.report import FitReport
from backend.planner.vllm.account import account
from backend.planner.vllm.deployment import default_deployment
from tests.fakes.fit_models import known


def asked(model: str, hardware: str, **ask: Any) -> FitReport:
    return fit(known(model), parse_hardware(hardware), FitAsk(engine="vllm", **ask))


def test_the_pool_is_what_the_account_says() -> None:
    place = parse_hardware("4x H100")
    gpu = place.machines[0].gpus[0]
    deployment = default_deployment(
        known("70b"), gpu=gpu.name, memory=gpu.total, capability=gpu.capability, tp=4, max_model_len=8192,
        version=(0, 19, 0),
    )  # fmt: skip
    memory = account(known("70b"), deployment)
    report = asked("70b", "4x H100", engine_version="0.19.0")
    plan = next(one for one in report.plans if (one.tensor, one.stages, one.weights) == (4, 1, "model"))
    assert plan.kv_tokens == memory.kv_tokens
    assert {term.name: term.bytes for term in plan.devices[0].terms}["kv"] == memory.stages[0].kv
    assert 400_000 < plan.kv_tokens < 500_000
    assert plan.largest_context == 131_072
    assert plan.options[:4] == ("--tensor-parallel-size", "4", "--max-model-len", "8192")
    assert not plan.runnable
    assert plan.blocked.startswith("vLLM runs this")


def test_heads_must_divide() -> None:
    assert {one.tensor for one in asked("70b", "3x L40S").plans} == {1, 2}


def test_packed_checkpoints_stay_as_they_are() -> None:
    report = asked("deepseek", "8x H200")
    assert {one.weights for one in report.plans} == {"model"}
    assert report.best is not None
    assert any("as the checkpoint has them" in reason for reason in report.plans[report.best].reasons)


def test_more_users_than_the_pool_holds_make_it_fragile() -> None:
    few, many = (asked("8b", "1x RTX-3090", users=users, context=8192) for users in (1, 100))
    plain = next(one for one in many.plans if (one.weights, one.kv_format) == ("model", "model"))
    assert plain.verdict.kind == "fragile"
    assert "others wait" in plain.verdict.sentence
    assert few.best is not None


@pytest.mark.parametrize(("utilization", "best"), [(0.95, True), (0.3, False)])
def test_the_utilization_is_obeyed(utilization: float, best: bool) -> None:
    report = asked("8b", "1x L40S", utilization=utilization, weights=("model",), kv_formats=("model",))
    assert (report.best is not None) is best
    assert report.plans[0].options[-2:] == ("--gpu-memory-utilization", str(utilization))
