"""Dollars for a million tokens: the formula, whose price, and when there is none."""

from __future__ import annotations

import pytest

from backend.planner.cost import cost_of, table_price
from backend.planner.fit.report import Interval

H100 = "NVIDIA H100 80GB HBM3"


def test_an_asked_price_is_taken_for_every_gpu() -> None:
    cost = cost_of(Interval(500.0, 1000.0, 2000.0), ["anything"] * 4, 2.0)
    assert cost is not None
    assert cost.per_million.likely == pytest.approx(1e6 * 4 * 2.0 / (3600 * 1000))
    assert cost.per_million.low == pytest.approx(cost.per_million.likely / 2)
    assert cost.per_million.high == pytest.approx(cost.per_million.likely * 2)
    assert (cost.price, cost.source, cost.dated) == (2.0, "as asked", "")


def test_the_tables_price_is_the_median_on_demand_and_says_whose_and_of_when() -> None:
    price = table_price(H100)
    assert price is not None
    assert price.usd == pytest.approx((2.29 + 4.76) / 2)
    assert "median of 2 on-demand" in price.source
    assert "RunPod" in price.source
    assert "2026" in price.dated


def test_unequal_gpus_are_paid_each() -> None:
    first, second = table_price(H100), table_price("NVIDIA L4")
    cost = cost_of(Interval(1.0, 1.0, 1.0), [H100, "NVIDIA L4"])
    assert first is not None
    assert second is not None
    assert cost is not None
    assert cost.price == pytest.approx((first.usd + second.usd) / 2)
    assert cost.per_million.likely == pytest.approx((first.usd + second.usd) * 1e6 / 3600)


@pytest.mark.parametrize("name", ["NVIDIA A30", "NVIDIA Whatever", "Tesla V100-SXM2-32GB"])
def test_nobodys_price_is_none(name: str) -> None:
    """The V100's offer is marked as doubtful."""
    assert table_price(name) is None
    assert cost_of(Interval(1.0, 2.0, 3.0), [H100, name]) is None


def test_nothing_served_or_nothing_used_costs_nothing_that_could_be_told() -> None:
    assert cost_of(Interval(0.0, 0.0, 0.0), [H100], 1.0) is None
    assert cost_of(Interval(1.0, 2.0, 3.0), [], 1.0) is None


def test_free_is_a_price_too() -> None:
    cost = cost_of(Interval(1.0, 2.0, 3.0), [H100], 0.0)
    assert cost is not None
    assert cost.per_million.high == 0
