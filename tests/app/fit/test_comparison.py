"""Machines compared: a line each, or one for each weight format that was asked for, in 80 columns."""

from __future__ import annotations

from app.fit.comparison import as_comparison
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.report import FitReport
from tests.fakes.reports import plan, report, too_large

NAMES = ["2x H100-80GB", "RTX-4090"]


def lines(reports: list[FitReport], names: list[str]) -> list[str]:
    return [" ".join(line.split()) for line in as_comparison(reports, names).splitlines()]


def test_a_line_for_each_machine_with_its_best_plan() -> None:
    shown = lines([report(plan(), plan(tensor=4)), report(too_large())], NAMES)
    assert shown[0] == "maker/large-70B: 4 users, context 8,192; goal latency; engine shardwise"
    assert shown[3:5] == [
        "2x H100-80GB 2x1x1 model roomy 69.5 131,072 54 92 ms 21 ms 1,234 2.31",
        "RTX-4090 1x1x1* model too large 131.5 - - - - - -",
    ]


def test_a_line_for_each_weight_format_that_was_asked_for() -> None:
    ask = FitAsk(context=8192, weights=("model", "nf4", "int8"))
    asked = report(plan(weights="int8"), plan(weights="model", runnable=False), plan(weights="model"), ask=ask)
    shown = lines([asked, report(ask=ask)], NAMES)
    assert [line.split()[-9:] if "none" in line else line.split(" roomy")[0].split()[-2:] for line in shown[3:6]] == [
        ["2x1x1", "model"],
        ["nf4", "none", "-", "-", "-", "-", "-", "-", "-"],
        ["2x1x1", "int8"],
    ]


def test_long_names_stand_above_their_figures() -> None:
    long = "2 nodes of 4x A100-80GB, ib-hdr"
    text = as_comparison([report(), report(too_large())], [long, "RTX-4090"])
    assert long in text.splitlines()
    assert max(map(len, text.splitlines())) <= 80


def test_the_first_token_is_left_out_before_a_table_gets_too_wide() -> None:
    name = "1x RTX-3090 nvl"
    text = as_comparison([report(plan(kv_format="int8", weights="int8")), report(too_large())], [name, "RTX-4090"])
    head = text.splitlines()[2].split()
    assert "first" not in head
    assert "token" in head
    assert any(line.startswith(f"{name} ") for line in text.splitlines())
