"""Models that choose the keys they attend to are planned up to as many positions, and beyond with the reason."""

from __future__ import annotations

from backend.hardware.specification import parse_hardware
from backend.library.model_table import known_from_catalogue
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.chosen import as_served
from backend.planner.fit.fit import fit
from backend.planner.fit.known_model import KnownModel


def sparse() -> KnownModel:
    known = known_from_catalogue("deepseek-ai/DeepSeek-V3.2")
    assert known is not None
    return known


def test_it_is_served_up_to_the_positions_that_it_chooses() -> None:
    report = fit(sparse(), parse_hardware("8x B200"), FitAsk(weights=("int8",)))
    assert report.ask.context == 2048
    plan = report.plans[report.best or 0]
    assert plan.runnable
    assert plan.largest_context == 2048


def test_beyond_them_it_is_planned_and_said_not_to_be_served() -> None:
    report = fit(sparse(), parse_hardware("8x B200"), FitAsk(context=32_768, weights=("int8",)))
    assert not any(plan.runnable for plan in report.plans)
    assert all("chooses 2,048 positions" in plan.blocked for plan in report.plans)
    assert report.plans[0].verdict.kind == "roomy"


def test_vllm_serves_all_positions() -> None:
    report = fit(sparse(), parse_hardware("8x B200"), FitAsk(engine="vllm"))
    assert report.ask.context == 8192


def test_without_the_chooser_it_has_fewer_parameters_of_its_own_and_other_models_stay_as_they_are() -> None:
    model = sparse()
    short = as_served(model, 1024)
    assert model.facts.parameters - short.facts.parameters == model.chooser_parameters > 500_000_000
    plain = known_from_catalogue("deepseek-ai/DeepSeek-V3")
    assert plain is not None
    assert as_served(plain, 1 << 17) is plain
