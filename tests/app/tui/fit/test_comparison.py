"""Two plans figure by figure: what differs is found, what is equal or missing is not called different."""

from __future__ import annotations

from app.tui.fit.comparison import compared
from tests.fakes import reports
from tests.fakes.reports import about, use


def rows(left, right) -> dict[str, tuple[str, str, str]]:
    return {row.name.strip(): (row.left, row.right, row.difference) for row in compared(left, right)}


def test_equal_plans_do_not_differ() -> None:
    assert {difference for *_, difference in rows(reports.plan(), reports.plan()).values()} == {""}


def test_differences_are_factors_percents_and_bytes() -> None:
    faster = reports.plan(
        tensor=4,
        weights="int8",
        devices=tuple(use(number, {"weights": 16.9, "kv": 34.1, "context": 0.5}) for number in range(4)),
        speed=reports.speed(token=about(0.0071), throughput=about(1500.0)),
        kv_tokens=898_000,
    )
    found = rows(reports.plan(), faster)
    assert found["weights"] == ("32.9 GiB", "16.9 GiB", "-16.0 GiB")
    assert found["devices"] == ("2", "4", "x2")
    assert found["KV tokens"][2] == "x2"
    assert found["token"] == ("21 ms", "7.1 ms", "x0.33")
    assert found["tokens/s"][2] == "+22%"
    assert found["layout"] == ("TP2", "TP4", "differs")


def test_a_plan_without_speed_has_dashes_and_no_factors() -> None:
    found = rows(reports.plan(), reports.too_large())
    assert found["token"] == ("21 ms", "-", "")
    assert found["$/1M tokens"][1] == "-"
    assert found["verdict"][2] == "differs"
