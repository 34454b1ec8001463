"""When computing prompts and answers apart is told of: long prompts, many users, a latency goal, two equal halves."""

from __future__ import annotations

from typing import Any

import pytest

from backend.hardware.machine import Machine
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.fit import fit
from tests.fakes.fit_models import cluster, known
from tests.fakes.machines import consumer, cpu_machine, dgx_h100, gpu_machine, unequal

ASK: dict[str, Any] = {"users": 16, "prompt": 6000, "answer": 500, "context": 8192, "goal": "latency"}


def told(machine: Machine, model: str = "8b", **changes: Any) -> list[str]:
    report = fit(known(model), cluster(machine), FitAsk(**(ASK | changes)))
    return [note for note in report.notes if "--disaggregate" in note]


def test_long_prompts_of_many_users_on_two_halves() -> None:
    (note,) = told(dgx_h100(2))
    assert "16 users and prompts of 6,000 tokens" in note
    assert "tokens a second do not rise" in note


@pytest.mark.parametrize(
    "changes", [{"users": 1}, {"prompt": 500}, {"goal": "throughput"}, {"engine": "vllm"}, {"model": "405b"}]
)
def test_where_it_would_not_help_nothing_is_said(changes: dict[str, Any]) -> None:
    assert not told(dgx_h100(2), **changes)


def test_devices_that_do_not_divide_into_equal_halves() -> None:
    assert not told(gpu_machine(*consumer(1)))
    assert not told(unequal())
    assert not told(cpu_machine())
