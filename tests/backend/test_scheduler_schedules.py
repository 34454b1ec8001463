"""Scheduler and Engine under thousands of random schedules, over an executor whose answers show any wrong page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backend.batch import Batch
from backend.engine import Engine
from backend.events import End, Start, Token
from backend.messages import StepOutput
from backend.request import Request, Sampling
from backend.scheduler import Scheduler
from kvcache import cache_manager
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from kvcache.page_key import root_of
from kvcache.page_pool import PagePool
from tests.fakes.executor import VOCABULARY, PagedExecutor, alone
from tests.fakes.tiers import FakeDisk, FakeTiers

MAX_CONTEXT = 40
POISON = VOCABULARY  # a prompt token that no answer contains: a batch with it makes a failing executor raise
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


@dataclass(frozen=True)
class Limits:
    """How tight things are. `spare` are pages beyond what a sequence of `fits` positions needs."""

    fits: int
    spare: int
    max_sequences: int
    step_tokens: int
    recompute_lengths: tuple[int, ...]
    scaled_past: int | None = None
    host_pages: int = 0
    disk_pages: int | None = None
    seed: int = 0
    failures: float = 0.0


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


def some_tokens(count: int, seed: int) -> tuple[int, ...]:
    """Drawing each token by itself would take longer than running them."""
    return tuple((seed * 31 + place * place * 7 + place * seed) % VOCABULARY for place in range(count))


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


def common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


@dataclass
class Told:
    """What the engine told of one request."""

    request: Request
    tokens: list[Token] = field(default_factory=list)
    end: End | None = None
    start: Start | None = None

    @property
    def known(self) -> tuple[int, ...]:
        return (*self.request.prompt, *self.request.prior, *(token.token for token in self.tokens))


class World:
    """An engine over a paged executor and a clock of its own, which checks each thing it is told."""

    def __init__(self, layout: CacheLayout, how: Limits) -> None:
        self.layout, self.how, self.now, self.failing = layout, how, 0.0, False
        pages = CacheManager(layout, 1).most_pages(how.fits, how.step_tokens) + how.spare
        disk = None if how.disk_pages is None else FakeDisk(how.disk_pages)
        tiers = FakeTiers(how.host_pages, disk, how.seed, how.failures)
        self.executor = PagedExecutor(layout, pages, how.recompute_lengths, self._refuse, how.scaled_past, tiers)
        self.scheduler = Scheduler(
            CacheManager(layout, pages, host_pages=how.host_pages, disk=disk),
            max_context=MAX_CONTEXT,
            max_sequences=how.max_sequences,
            step_tokens=how.step_tokens,
            recompute_lengths=how.recompute_lengths,
            scaled_past=how.scaled_past,
        )
        self.engine = Engine(self.scheduler, self.executor, lambda: self.now)
        self.told: dict[str, Told] = {}
        self.cancelled: set[str] = set()

    def _refuse(self, batch: Batch) -> None:
        if any(POISON in part.tokens for part in batch.slices):
            raise RuntimeError("CUDA out of memory: tried to allocate\nTraceback: secret")
        if self.failing and len(batch.slices) > 1:
            raise MemoryError

    def submit(self, request: Request) -> None:
        name = f"request {len(self.told)}"
        request = msgspec.structs.replace(request, id=name)
        self.told[name] = Told(request)
        self.engine.submit(request)

    def step(self) -> StepOutput:
        before = len(self.executor.batches)
        output = self.engine.step()
        self.now += 1.0
        assert self.executor.faults == []
        for batch in self.executor.batches[before:]:
            assert batch.token_count <= self.how.step_tokens
            assert len(batch.slices) <= self.how.max_sequences
            assert batch.slices or batch.transfers
            numbers = [part.sequence for part in batch.slices]
            assert len(numbers) == len(set(numbers))
        for start in output.starts:
            self._check_start(start)
        for token in output.tokens:
            told = self.told[token.request]
            assert told.start is not None
            assert told.end is None
            assert token.index == len(told.request.prior) + len(told.tokens)
            told.tokens.append(token)
        for end in output.ends:
            assert self.told[end.request].end is None
            self.told[end.request].end = end
        return output

    def _check_start(self, start: Start) -> None:
        """A request starts once, and nothing is cached of it that no other one of its salt had."""
        told = self.told[start.request]
        assert told.start is told.end is None
        told.start = start
        others = [one for one in self.told.values() if one.request.cache_salt == told.request.cache_salt]
        common = [common_prefix(told.known, one.known) for one in others if one is not told and one.start]
        assert 0 <= start.cached_tokens <= min(max(common, default=0), len(told.request.prompt))

    def run_dry(self) -> None:
        """Steps until nothing is left, within a bound that any starvation would pass."""
        # Each step moves the first sequence on. Its tokens are computed at most once a recompute length, and again
        # after a preemption; the factor stands for these.
        tokens = sum(len(told.request.prompt) + 25 for told in self.told.values() if told.end is None)
        bound = 10 + tokens * (2 + len(self.how.recompute_lengths))
        if self.how.host_pages or self.how.disk_pages:
            # Steps that wait for transfers, each of which takes a few.
            bound *= 8
        while self.engine.has_work:
            self.step()
            bound -= 1
            assert bound > 0, "something starves"

    def be_idle(self) -> None:
        """Until nothing is left to be done for the disk."""
        for _ in range(1000):
            if self.engine.idle() is None:
                return
            self.scheduler.check_integrity()
        raise AssertionError("idle writes have no end")

    def finish(self) -> None:
        self.run_dry()
        self.be_idle()
        self.check_answers()

    def check_answers(self) -> None:
        assert all(told.end is not None for told in self.told.values())
        for told in self.told.values():
            self._check_answer(told)
        statistics = self.scheduler.statistics()
        assert (statistics.running, statistics.waiting, statistics.cache.pages_used) == (0, 0, 0)
        assert statistics.cache.pages_free + statistics.cache.pages_cached == statistics.cache.pages_total
        assert statistics.generation_tokens == sum(len(told.tokens) for told in self.told.values())

    def _check_answer(self, told: Told) -> None:
        request, end = told.request, told.end
        assert end is not None
        answer = [token.token for token in told.tokens]
        if end.reason == "error":
            assert answer == []
            if POISON in request.prompt and len(request.prompt) < self.scheduler.longest_sequence:
                assert "RuntimeError: CUDA out of memory" in end.message
                assert "secret" not in end.message
            else:
                assert len(request.prompt) >= self.scheduler.longest_sequence
            return
        how, longest = self.how, self.scheduler.longest_sequence
        expected = alone(request, self.layout, longest, how.recompute_lengths, how.scaled_past)
        if end.reason in ("stop", "length"):
            assert answer == expected
            full = [*request.prior, *answer]
            stopped = len(full) > request.sampling.min_tokens and full[-1:] and full[-1] in request.sampling.stop_tokens
            assert end.reason == ("stop" if stopped else "length")
        else:
            assert answer == expected[: len(answer)]
            assert request.timeout is not None if end.reason == "deadline" else request.id in self.cancelled


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


def shared_world() -> World:
    """Sequences that share a trunk, under salts, of a model with windows and dynamic NTK."""
    layout = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4), LayerCache(Keeps.SLIDING, 6, 1, 4, 4)), 2, 2)
    world = World(layout, Limits(MAX_CONTEXT, 60, 4, 24, (20,), 18))
    trunk = some_tokens(MAX_CONTEXT, 0)
    for number in range(16):
        salt = b"one" if number % 3 else b"other"
        prompt = (*trunk[: 6 + number * 8 % 20], *range(number // 10 * 3))
        sampling = Sampling(max_tokens=8)
        world.submit(Request(id="", prompt=prompt, sampling=sampling, cache_salt=salt))
        world.step()
    return world


def test_shared_prefixes_are_served_from_the_cache():
    world = shared_world()
    world.finish()
    statistics = world.scheduler.statistics().cache
    assert statistics.hit_tokens > 30
    assert sum(told.start.cached_tokens for told in world.told.values() if told.start) > 30


@pytest.mark.parametrize("mutation", ["no salt", "no class", "no windows", "no last token", "not kept"])
def test_the_checks_notice_what_must_not_be_shared(mutation: str, monkeypatch: pytest.MonkeyPatch):
    longest = cache_manager.longest_prefix
    if mutation == "no salt":
        monkeypatch.setattr(cache_manager, "root_of", lambda space, salt, kind: root_of(space, kind))
    elif mutation == "no class":
        monkeypatch.setattr(cache_manager, "root_of", lambda space, salt, kind: root_of(space, salt))
    elif mutation == "no windows":
        monkeypatch.setattr(
            cache_manager,
            "longest_prefix",
            lambda groups, keys, limit, held: longest(groups[:1], keys[:1], limit, held),
        )
    elif mutation == "no last token":
        monkeypatch.setattr(
            cache_manager, "longest_prefix", lambda groups, keys, limit, held: longest(groups, keys, limit + 1, held)
        )
    else:
        monkeypatch.setattr(PagePool, "keep", lambda pool, page: None)
    with pytest.raises((AssertionError, ValueError, KeyError, IndexError)):
        shared_world().finish()
