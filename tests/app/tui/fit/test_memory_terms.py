"""Bars of memory: every term is seen, cells sum to the bar, alike devices are found."""

from __future__ import annotations

import pytest

from app.tui.fit.memory_terms import TERMS, alike, cells, look, parts
from app.tui.widgets.memory_bars import memory_lines, runs
from tests.fakes import reports
from tests.fakes.reports import GIB


@pytest.mark.parametrize("width", [12, 30, 77])
@pytest.mark.parametrize("amounts", [(1, 0, 10**12), (5, 5, 5, 5), (0, 0), (10**9, 1, 1, 1, 1), (7,)])
def test_cells_sum_to_the_bar_and_nothing_that_is_there_vanishes(amounts: tuple[int, ...], width: int) -> None:
    counts = cells(amounts, width)
    assert sum(counts) == (width if any(amounts) else 0)
    assert all(bool(count) == bool(amount) for count, amount in zip(counts, amounts, strict=True))


def test_the_parts_sum_to_the_device() -> None:
    device = reports.use(0, {"weights": 30.0, "kv": 41.0})
    assert sum(amount for _, amount in parts(device)) == device.total
    assert [name for name, _ in parts(device)] == ["weights", "kv", "free", "held"]


def test_glyphs_tell_the_terms_apart_without_colour() -> None:
    glyphs = {glyph for glyph, _, name in TERMS.values() if name != "libraries"}
    assert len(glyphs) == len(TERMS) - 2
    assert look("something new")[2] == "something new"


@pytest.mark.parametrize("width", [60, 76, 120])
@pytest.mark.parametrize("together", [True, False])
def test_lines_fit_and_figures_stand_beside_the_bars(width: int, together: bool) -> None:
    plan = reports.plan(devices=tuple(reports.use(number, {"weights": 30.0, "kv": 41.0}) for number in range(8)))
    lines = [line.plain for line in memory_lines(plan, width, together)]
    assert max(map(len, lines)) <= width
    assert sum("71.0/79.0 GiB" in line for line in lines) == (1 if together else 8)
    assert ("GPU 0-7" in lines[0]) is together
    assert any("weights 30.0 GiB" in line for line in lines)


def test_a_device_that_is_short_says_by_how_much() -> None:
    text = "\n".join(line.plain for line in memory_lines(reports.too_large(), 76, together=True))
    assert "57.0 GiB short" in text
    assert "free" not in text


def test_unequal_devices_have_bars_and_legends_of_their_own() -> None:
    plan = reports.plan(devices=(reports.use(0, {"weights": 30.0}), reports.use(1, {"weights": 60.0})))
    assert len(alike(plan.devices)) == 2
    text = "\n".join(line.plain for line in memory_lines(plan, 76, together=True))
    assert "weights 30.0 GiB" in text
    assert "weights 60.0 GiB" in text


def test_nodes_are_named_where_there_are_several() -> None:
    devices = tuple(reports.use(number % 4, {"weights": 1.0}, machine=number // 4) for number in range(8))
    assert "node 1-2 GPU 0-3" in memory_lines(reports.plan(devices=devices), 76, together=True)[0].plain


def test_runs_of_numbers() -> None:
    assert runs([0, 1, 2, 5]) == "0-2, 5"
    assert GIB == 1 << 30
