"""Rows of plans: nothing overflows, verdicts are words, what matters least goes first."""

from __future__ import annotations

import pytest

from app.tui.fit import words
from app.tui.fit.plan_rows import table
from backend.planner.fit.report import Verdict
from tests.fakes import reports

PLANS = (
    reports.plan(),
    reports.plan(replicas=2, tensor=8, stages=2, experts="expert", weights="mxfp4", kv_format="k=int8,v=fp8"),
    reports.too_large(),
    reports.plan(verdict=Verdict("fragile", "kv", 1, 2, "Little is left."), runnable=False),
)


@pytest.mark.parametrize("width", [30, 60, 76, 120])
def test_no_row_is_wider_than_its_room(width: int) -> None:
    head, rows = table(PLANS, width)
    assert max(map(len, (head, *rows))) <= width
    assert len(rows) == len(PLANS)


def test_verdict_and_layout_stay_where_all_else_goes() -> None:
    head, rows = table(PLANS, 30)
    assert head.split()[:2] == ["verdict", "layout"]
    assert rows[2].startswith("✗ too large")
    assert rows[3].startswith("! fragile")


def test_the_usual_plans_have_all_columns_on_a_small_terminal() -> None:
    head, _ = table(PLANS[:1] + PLANS[2:], 76)
    assert head.split() == [
        "verdict", "layout", "weights", "KV", "context", "users", "first", "token", "tok/s", "$/1M", "runs",
    ]  # fmt: skip


def test_without_prices_there_is_no_column_for_them() -> None:
    head, _ = table((reports.plan(cost=None),), 120)
    assert "$/1M" not in head


def test_layouts_say_how_often_a_model_is_there() -> None:
    assert [words.layout(plan) for plan in PLANS] == ["TP2", "2x(EP8·PP2)", "1 GPU", "TP2"]
    assert words.layout(reports.plan(tensor=1, devices=(reports.use(None, {"weights": 1.0}),))) == "CPU"


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512"), (1024, "1K"), (9800, "9.5K"), (131_072, "128K"), (1 << 20, "1M"), (449_000, "438K")],
)
def test_tokens_are_never_more_than_there_are(count: int, text: str) -> None:
    assert words.tokens(count) == text


def test_amounts_read_as_people_say_them() -> None:
    assert words.memory(512 << 20) == "512 MiB"
    assert words.memory(79 << 30) == "79.0 GiB"
    assert words.parameters(134_515_008) == "135M"
    assert words.parameters(1_040_000_000_000) == "1.04T"
    assert words.dollars(0.004) == "<$0.01"
