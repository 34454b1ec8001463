"""Depth: fits of stage times, and the count of batches that follows."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_ext.depth import DepthMeter, StageTime, best_depth, fit, period

seconds = st.floats(0.001, 1.0)


@given(seconds, st.floats(0.0, 0.1), st.lists(st.integers(1, 64), min_size=2, max_size=10, unique=True))
def test_a_line_is_found_again(fixed: float, each: float, counts: list[int]):
    found = fit([(count, fixed + each * count) for count in counts])
    assert found.fixed == pytest.approx(fixed, rel=1e-6, abs=1e-6)
    assert found.each == pytest.approx(each, rel=1e-6, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.0, 1.0)), max_size=10))
def test_no_part_of_a_fit_is_below_0(samples: list[tuple[int, float]]):
    found = fit(samples)
    assert found.fixed >= 0.0
    assert found.each >= 0.0


@given(st.lists(seconds, min_size=1, max_size=4), st.floats(0.0, 0.2), st.integers(1, 8))
def test_with_fixed_times_it_is_all_times_over_the_slowest(times: list[float], delays: float, most: int):
    """Decision 5: with times that do not depend on the batch, one batch can never be worth more than one."""
    stages = [StageTime(0.0, time) for time in times]
    sequences = 10_000
    depth = best_depth(stages, delays, sequences, most)
    periods = [period(stages, delays, sequences, one) for one in range(1, most + 1)]
    assert periods[depth - 1] <= min(periods) * 1.03 * (1.02**most)
    assert depth <= max(1, ceil((sum(times) * sequences + delays) / (max(times) * sequences / most)))


def test_two_equal_stages_that_grow_with_their_batches_take_two():
    stages = [StageTime(0.0001, 0.001)] * 2
    assert best_depth(stages, 0.0, 16, 8) == 2
    assert best_depth(stages, 0.020, 16, 8) > 2
    assert best_depth(stages, 0.0, 1, 8) == 1


def test_stages_whose_time_is_all_fixed_gain_nothing_from_small_batches():
    assert best_depth([StageTime(0.01, 0.0)] * 2, 0.0, 16, 8) == 1


def test_delays_are_told_by_batches_that_found_all_stages_idle_only():
    meter = DepthMeter(2, 8)
    assert meter.depth(16) == 2
    meter.observe(8, [(0.01, 0.5), (0.01, 0.5)], 0.06)
    meter.observe(8, [(0.01, 0.5), (0.01, 0.0)], 9.0)
    meter.observe(8, [(0.01, 0.5)], 7.0)
    assert meter.delays == pytest.approx(0.04)
    assert meter.stages[0].seconds(8) == pytest.approx(0.01)


def test_batches_of_one_size_are_not_taken_to_tell_of_others():
    """Stages that were only seen with all sequences at once look as if smaller batches gained nothing."""
    meter = DepthMeter(2, 8)
    for _ in range(100):
        meter.observe(16, [(0.016, 0.5), (0.016, 0.5)], 0.032)
    assert meter.depth(16) == 2
    meter.observe(8, [(0.0085, 0.0), (0.0085, 0.0)], 0.02)
    assert meter.depth(16) == 2
    for _ in range(DepthMeter.OF_A_SIZE):
        meter.observe(8, [(0.0158, 0.0), (0.0158, 0.0)], 0.03)
    assert meter.depth(16) == 1


def test_what_was_measured_long_ago_is_measured_again():
    meter = DepthMeter(2, 8)
    for size in (8, 16):
        meter.observe(size, [(0.01, 0.0), (0.01, 0.0)], 0.02)
    assert meter.depth(16) == 1
    for _ in range(DepthMeter.MEMORY + 1):
        meter.observe(16, [(0.01, 0.0), (0.01, 0.0)], 0.02)
    assert meter.depth(16) == 2
