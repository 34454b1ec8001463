"""Scheduler and Engine with several batches in flight over stages that break: random schedules, and cases by hand."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from backend.request import Request
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from tests.backend.test_scheduler_schedules import EXAMPLES, Schedules, layouts, limits, requests
from tests.fakes.staged import StagedExecutor
from tests.fakes.world import Limits, World

FULL = LayerCache(Keeps.FULL, None, 1, 4, 4)
LAYOUT = build_layout((FULL,), 2, page_tokens=4)

staged = st.builds(replace, limits, stages=st.integers(1, 3), depth=st.integers(1, 4))
losses = st.lists(st.integers(0, 2), max_size=2).map(tuple)


@settings(max_examples=5 * EXAMPLES)
@given(layouts, staged, st.lists(st.tuples(requests, st.integers(0, 5), st.none() | losses), min_size=1, max_size=8))
def test_any_arrivals_and_breaks_leave_the_answers_as_they_would_be_alone(
    layout: CacheLayout, how: Limits, arrivals: list[tuple[Request, int, tuple[int, ...] | None]]
):
    world = World(layout, how)
    for request, steps, lost in arrivals:
        world.submit(request)
        for _ in range(steps):
            world.step()
            world.scheduler.check_integrity()
        if lost is not None:
            world.break_off(lost, 2)
    world.finish()


class Flights(Schedules):
    """Arrivals, cancellations, deadlines, failures, idle times, depths, breaks and steps in any order."""

    @initialize(layout=layouts, how=staged)
    def start(self, layout: CacheLayout, how: Limits) -> None:
        self.world = World(layout, how)

    @property
    def executor(self) -> StagedExecutor:
        assert isinstance(self.world.executor, StagedExecutor)
        return self.world.executor

    @rule(lost=losses, mending=st.integers(0, 4))
    def break_off(self, lost: tuple[int, ...], mending: int) -> None:
        self.world.break_off(lost, mending)

    @precondition(lambda self: not self.executor.in_flight)
    @rule(depth=st.integers(1, 4))
    def choose_another_depth(self, depth: int) -> None:
        self.executor.depth = depth


TestFlights = Flights.TestCase
TestFlights.settings = settings(max_examples=3 * EXAMPLES, stateful_step_count=30)
