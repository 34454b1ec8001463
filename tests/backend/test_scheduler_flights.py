"""Scheduler and Engine with several batches in flight over stages that break: random schedules, and cases by hand."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from backend.request import Request, Sampling
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from tests.backend.test_scheduler_schedules import EXAMPLES, Schedules, layouts, limits, requests
from tests.fakes.staged import StagedExecutor
from tests.fakes.world import MAX_CONTEXT, Limits, World

FULL = LayerCache(Keeps.FULL, None, 1, 4, 4)
LAYOUT = build_layout((FULL,), 2, page_tokens=4)

staged = st.builds(replace, limits, stages=st.integers(1, 3), depth=st.integers(1, 4))
losses = st.lists(st.integers(0, 2), max_size=2).map(tuple)


@settings(max_examples=2 * EXAMPLES)
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
TestFlights.settings = settings(max_examples=EXAMPLES, stateful_step_count=20)


def world(stages: int = 2, depth: int = 2, **limits_: int) -> World:
    how = Limits(fits=MAX_CONTEXT, spare=60, max_sequences=8, step_tokens=16, recompute_lengths=(), seed=3)
    return World(LAYOUT, replace(how, stages=stages, depth=depth, **limits_))


def ask(target: World, start: int, length: int, tokens: int = 6) -> None:
    prompt = tuple(range(start, start + length))
    target.submit(Request(id="", prompt=prompt, sampling=Sampling(max_tokens=tokens)))


def test_decodes_are_spread_over_the_batches_in_flight():
    target = world()
    for number in range(6):
        ask(target, number * 10, 3, tokens=20)
    for _ in range(12):
        target.step()
    later = target.executor.batches[-4:]
    assert [len(batch.slices) for batch in later] == [3] * 4
    assert {part.sequence for batch in later[:2] for part in batch.slices} == set(range(6))
    target.finish()


def test_slices_of_a_prompt_follow_each_other_before_the_first_is_committed():
    target = world()
    ask(target, 0, 30)
    target.step()
    first, second = target.executor.batches[:2]
    assert [(part.start, len(part.tokens)) for batch in (first, second) for part in batch.slices] == [(0, 8), (8, 8)]
    target.finish()


def test_what_was_in_flight_for_an_earlier_admission_is_not_taken_in():
    target = world()
    ask(target, 0, 8)
    batch = target.scheduler.schedule(0.0, 2)
    (sequence,) = target.scheduler._running
    target.scheduler._preempt(sequence)
    again = target.scheduler.schedule(0.0, 2)
    assert [part.start for part in again.slices] == [0]
    assert target.scheduler.commit(batch, [None] * len(batch.slices)) == ([], [])
    assert sequence.computed == 0


def test_lost_pages_are_computed_again_in_place_by_the_first_stages_only_and_shared_ones_once():
    target = world(stages=3, depth=1)
    ask(target, 0, 17, tokens=12)
    while not target.told["request 0"].tokens:
        target.step()
    ask(target, 0, 17, tokens=12)
    while not target.told["request 1"].tokens:
        target.step()
    pages = [list(one.tables[0].ids) for one in target.scheduler._running]
    before = len(target.executor.batches)
    target.break_off((1,), 2)
    while target.executor.batches[-1].until is None:
        target.step()
    assert [one.tables[0].ids[: len(own)] for one, own in zip(target.scheduler._running, pages, strict=True)] == pages
    target.finish()
    restored = [one for batch in target.executor.batches[before:] if batch.until == 2 for one in batch.slices]
    assert restored
    assert all(part.sample is None for part in restored)
    # The second shares four pages with the first.
    assert min(part.start for part in restored if part.sequence == 1) == 16
    assert target.scheduler.statistics().preemptions == 0


def test_a_sequence_whose_window_has_left_pages_behind_begins_again():
    layout = build_layout((LayerCache(Keeps.SLIDING, 4, 1, 4, 4),), 2, page_tokens=2)
    target = World(layout, Limits(MAX_CONTEXT, 20, 4, 16, (), stages=2, depth=2))
    ask(target, 0, 12, tokens=10)
    while len(target.told["request 0"].tokens) < 3:
        target.step()
    target.break_off((0,), 1)
    target.finish()
    assert target.scheduler.statistics().preemptions == 1


def test_deadlines_end_requests_while_stages_are_mended():
    target = world()
    target.submit(Request(id="", prompt=(1, 2, 3), sampling=Sampling(max_tokens=30), timeout=6.0))
    target.step()
    target.break_off((0,), 50)
    for _ in range(10):
        target.step()
    told = target.told["request 0"]
    assert target.executor.in_flight
    assert told.end is not None
    assert told.end.reason == "deadline"
    target.finish()
