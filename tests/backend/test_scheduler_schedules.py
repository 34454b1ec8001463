"""Scheduler and Engine under thousands of random schedules, over an executor whose answers show any wrong page."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backend.request import Request, Sampling
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from tests.fakes.executor import VOCABULARY
from tests.fakes.world import MAX_CONTEXT, POISON, Limits, World, some_tokens

# The profile's number of examples is for one plain property; these here are the heart of the matter.
EXAMPLES = settings.default.max_examples if settings.default else 100

layer_caches = st.one_of(
    st.just(LayerCache(Keeps.FULL, None, 1, 4, 4)),
    st.builds(
        LayerCache,
        st.sampled_from([Keeps.SLIDING, Keeps.CHUNKED]),
        st.integers(1, 12),
        st.just(1),
        st.just(4),
        st.just(4),
    ),
)
layouts = st.builds(
    build_layout,
    st.lists(layer_caches, min_size=1, max_size=3).map(tuple),
    st.just(2),
    st.sampled_from([1, 2, 4]),
)


limits = st.builds(
    Limits,
    fits=st.integers(4, MAX_CONTEXT),
    spare=st.integers(0, 12),
    max_sequences=st.integers(1, 6),
    step_tokens=st.integers(1, 24),
    recompute_lengths=st.lists(st.integers(2, MAX_CONTEXT), max_size=2, unique=True).map(tuple),
    scaled_past=st.none() | st.none() | st.integers(1, MAX_CONTEXT),
    host_pages=st.just(0) | st.integers(1, 24),
    disk_pages=st.none() | st.integers(1, 200),
    seed=st.integers(0, 1000),
    failures=st.sampled_from([0.0, 0.0, 0.1, 0.5]),
)


def token_tuples(least: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.builds(some_tokens, st.integers(least, most), st.integers(0, VOCABULARY))


def branch(trunk: tuple[int, ...], stays: int, own: tuple[int, ...]) -> tuple[int, ...]:
    return (*trunk[:stays], *own)


# Most prompts branch off one of two trunks, or go all along it, so that they share prefixes of all lengths.
prompts = st.one_of(
    token_tuples(1, MAX_CONTEXT + 2),
    st.builds(
        branch,
        st.builds(some_tokens, st.just(MAX_CONTEXT), st.integers(0, 1)),
        st.integers(1, MAX_CONTEXT),
        st.just(()) | token_tuples(0, 8),
    ),
)

requests = st.builds(
    Request,
    id=st.just(""),
    prompt=prompts,
    cache_salt=st.sampled_from([b"", b"", b"", b"other"]),
    prior=token_tuples(0, 4),
    sampling=st.builds(
        Sampling,
        max_tokens=st.integers(1, 20),
        min_tokens=st.integers(0, 3),
        stop_tokens=token_tuples(0, 6),
    ),
    priority=st.integers(0, 2),
    timeout=st.none() | st.none() | st.integers(0, 30).map(float),
)


@settings(max_examples=10 * EXAMPLES)
@given(layouts, limits, st.lists(st.tuples(requests, st.integers(0, 3)), min_size=1, max_size=8))
def test_any_arrivals_get_the_answers_they_would_get_alone(
    layout: CacheLayout, how: Limits, arrivals: list[tuple[Request, int]]
):
    world = World(layout, how)
    for request, steps in arrivals:
        world.submit(request)
        for _ in range(steps):
            world.step()
            world.scheduler.check_integrity()
    world.finish()


class Schedules(RuleBasedStateMachine):
    """Arrivals, cancellations, deadlines, failures and steps in any order."""

    @initialize(layout=layouts, how=limits)
    def start(self, layout: CacheLayout, how: Limits) -> None:
        self.world = World(layout, how)

    @rule(request=requests)
    def submit(self, request: Request) -> None:
        self.world.submit(request)

    @rule(request=requests, place=st.integers(0, 50))
    def submit_what_makes_the_executor_fail(self, request: Request, place: int) -> None:
        prompt = list(request.prompt)
        prompt[place % len(prompt)] = POISON
        self.world.submit(Request(id="", prompt=tuple(prompt), sampling=request.sampling))

    @precondition(lambda self: self.world.told)
    @rule(place=st.integers(0, 50))
    def cancel(self, place: int) -> None:
        name = f"request {place % len(self.world.told)}"
        self.world.cancelled.add(name)
        self.world.engine.cancel(name)

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()
            self.world.scheduler.check_integrity()

    @precondition(lambda self: not self.world.engine.has_work)
    @rule(times=st.integers(1, 20))
    def be_idle(self, times: int) -> None:
        for _ in range(times):
            self.world.engine.idle()
            self.world.scheduler.check_integrity()

    @rule(failing=st.booleans())
    def let_the_executor_fail_on_more_than_one_sequence(self, failing: bool) -> None:
        self.world.failing = failing

    @rule(seconds=st.integers(1, 40))
    def let_time_pass(self, seconds: int) -> None:
        self.world.now += seconds

    @invariant()
    def pages_and_queues_fit_together(self) -> None:
        self.world.scheduler.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=3 * EXAMPLES, stateful_step_count=30)


def test_tight_pools_preempt_and_still_answer_as_alone():
    layout = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4), LayerCache(Keeps.SLIDING, 6, 1, 4, 4)), 2, 4)
    world = World(layout, Limits(MAX_CONTEXT, 4, 6, 24, (11,)))
    for number in range(12):
        prompt = tuple((number * 31 + one * 7) % VOCABULARY for one in range(3 + number % 5))
        world.submit(Request(id="", prompt=prompt, sampling=Sampling(max_tokens=20), priority=number % 2))
    world.finish()
    assert world.scheduler.statistics().preemptions > 3
    assert Counter(told.end.reason for told in world.told.values() if told.end) == {"length": 12}


@pytest.mark.parametrize("flaw", ["stale", "shared", "skipped"])
def test_the_executor_shows_wrong_pages(flaw: str):
    """The check itself is checked: each kind of damage to a table changes the answer or is a fault."""
    layout = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4),), 2, 2)
    world = World(layout, Limits(MAX_CONTEXT, 40, 4, 24, ()))
    for start in (1, 50):
        world.submit(Request(id="", prompt=tuple(range(start, start + 6)), sampling=Sampling(max_tokens=6)))
    world.step()
    first, second = (sequence.tables[0].ids for sequence in world.scheduler._running)
    if flaw == "stale":
        first[1] = world.scheduler._cache._pool.take(1)[0]  # pyright: ignore[reportOptionalSubscript]
    elif flaw == "shared":
        first[0] = second[0]
    else:
        first[0], first[1] = first[1], first[0]
    with pytest.raises((AssertionError, ValueError)):
        world.finish()
