"""Engine: one step, its clock, and failures that stay with the request that caused them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backend.batch import Batch
from backend.engine import Engine
from backend.errors import OutOfMemoryError
from backend.events import End, Start, Token
from backend.executor import DeviceLostError
from backend.request import Request, Sampling
from backend.scheduler import Scheduler
from kvcache.cache_manager import CacheManager
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.statistics import FREE, USED
from tests.fakes.executor import PagedExecutor, alone
from tests.fakes.tiers import FakeDisk, FakeTiers

LAYOUT = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4),), 2, page_tokens=4)
PAGES, LIMIT = 32, 60


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def engine(refuse: Callable[[Batch], None] = lambda batch: None) -> tuple[Engine, PagedExecutor, Clock]:
    clock = Clock()
    executor = PagedExecutor(LAYOUT, PAGES, refuse=refuse)
    scheduler = Scheduler(CacheManager(LAYOUT, PAGES), max_context=LIMIT, max_sequences=8, step_tokens=32)
    return Engine(scheduler, executor, clock), executor, clock


def request(name: str, *prompt: int, max_tokens: int = 3, timeout: float | None = None) -> Request:
    return Request(id=name, prompt=prompt, sampling=Sampling(max_tokens=max_tokens), timeout=timeout)


def run(target: Engine) -> tuple[list[Token], list[End]]:
    tokens, ends = [], []
    while target.has_work:
        output = target.step()
        tokens += output.tokens
        ends += output.ends
    return tokens, ends


def answer(tokens: list[Token], name: str) -> list[int]:
    return [token.token for token in tokens if token.request == name]


def refuse_token(bad: int, error: Exception) -> Callable[[Batch], None]:
    def refuse(batch: Batch) -> None:
        if any(bad in part.tokens for part in batch.slices):
            raise error

    return refuse


def test_a_step_brings_tokens_then_ends():
    target, _, _ = engine()
    one, two = request("one", 1, 2, 3, max_tokens=1), request("two", 4, 5)
    target.submit(one)
    target.submit(two)
    output = target.step()
    assert [token.request for token in output.tokens] == ["one", "two"]
    assert output.ends == (End("one", "length"),)
    assert (output.statistics.running, output.statistics.generation_tokens) == (1, 2)
    tokens, ends = run(target)
    assert [output.tokens[1].token, *answer(tokens, "two")] == alone(two, LAYOUT, LIMIT)
    assert ends == [End("two", "length")]


def test_an_end_without_work_is_told_without_running_anything():
    target, executor, _ = engine()
    target.submit(request("gone", 1))
    target.cancel("gone")
    assert target.has_work
    assert target.step().ends == (End("gone", "cancelled"),)
    assert not target.has_work
    assert executor.batches == []


def test_time_limits_run_on_the_engines_clock():
    target, _, clock = engine()
    target.submit(request("slow", 1, max_tokens=50, timeout=5.0))
    assert target.step().ends == ()
    clock.now += 5.0
    assert target.step().ends == (End("slow", "deadline"),)


def test_times_are_of_the_whole_step_and_of_all_but_the_run():
    def run_for_two_seconds(batch: Batch) -> None:
        clock.now += 2.0

    target, _, clock = engine(run_for_two_seconds)
    target.submit(request("one", 1))
    target.step()
    statistics = target.step().statistics
    assert (statistics.steps, statistics.step_seconds, statistics.scheduling_seconds) == (2, 4.0, 0.0)


@pytest.mark.parametrize("place", range(5))
def test_only_the_culprit_of_a_failure_ends(place: int):
    target, _, _ = engine(refuse_token(99, RuntimeError("out of memory\n  File secret.py")))
    wanted = {f"good {number}": request(f"good {number}", number, number + 1) for number in range(4)}
    submitted = list(wanted.values())
    submitted.insert(place, request("bad", 1, 99))
    for one in submitted:
        target.submit(one)
    tokens, ends = run(target)
    (failed,) = [end for end in ends if end.reason == "error"]
    assert failed == End("bad", "error", "The engine could not run this request (RuntimeError: out of memory).")
    assert len(ends) == 5
    assert {name: answer(tokens, name) for name in wanted} == {
        name: alone(one, LAYOUT, LIMIT) for name, one in wanted.items()
    }


def test_an_explained_failure_keeps_its_words():
    target, _, _ = engine(refuse_token(1, OutOfMemoryError("No memory.", "It is full.", "Buy some.")))
    target.submit(request("bad", 1))
    assert run(target)[1] == [End("bad", "error", "No memory.\nIt is full.\nBuy some.")]


def test_a_failure_of_large_batches_ends_nobody():
    def refuse_many(batch: Batch) -> None:
        if len(batch.slices) > 1:
            raise MemoryError

    target, executor, _ = engine(refuse_many)
    wanted = [request(f"{number}", number, 7) for number in range(3)]
    for one in wanted:
        target.submit(one)
    tokens, ends = run(target)
    assert [answer(tokens, one.id) for one in wanted] == [alone(one, LAYOUT, LIMIT) for one in wanted]
    assert {end.reason for end in ends} == {"length"}
    assert [len(batch.slices) for batch in executor.batches[:5]] == [3, 1, 2, 1, 1]


@pytest.mark.parametrize("error", [DeviceLostError("rank 0 is gone"), KeyboardInterrupt()])
def test_what_is_fatal_passes_through_at_once(error: BaseException):
    def refuse(batch: Batch) -> None:
        raise error

    target, executor, _ = engine(refuse)
    target.submit(request("one", 1))
    target.submit(request("two", 2))
    with pytest.raises(type(error)):
        target.step()
    assert len(executor.batches) == 1


def tiered(failing: Callable[[Batch], None] = lambda batch: None) -> tuple[Engine, PagedExecutor, FakeTiers, Clock]:
    """An engine over a small pool, with a disk and a host tier."""
    clock, disk, tiers = Clock(), FakeDisk(1000), FakeTiers(64)
    tiers.disk = disk
    executor = PagedExecutor(LAYOUT, 16, refuse=failing, tiers=tiers)
    cache = CacheManager(LAYOUT, 16, host_pages=64, disk=disk)
    return (
        Engine(Scheduler(cache, max_context=LIMIT, max_sequences=8, step_tokens=32), executor, clock),
        executor,
        tiers,
        clock,
    )


def test_starts_are_told_before_tokens_and_once():
    target, _, _ = engine()
    target.submit(request("one", *range(9)))
    assert target.step().starts == (Start("one", 0),)
    assert target.step().starts == ()
    run(target)
    target.submit(request("two", *range(9)))
    assert target.step().starts == (Start("two", 8),)


def test_the_map_is_told_at_most_twice_a_second_and_when_it_has_changed():
    target, _, clock = engine()
    target.submit(request("one", 1, 2, 3, 4, 5, max_tokens=30))
    first = target.step().cache_map
    assert first is not None
    assert sorted(first.device) == [FREE] * (PAGES - 2) + [USED] * 2
    clock.now += 0.4
    assert target.step().cache_map is None
    clock.now += 0.2
    assert target.step().cache_map is None
    for _ in range(5):
        target.step()
    clock.now += 0.6
    assert target.step().cache_map is not None


def test_idle_writes_end_and_a_later_engine_reads_them():
    target, _, tiers, _ = tiered()
    one = request("one", *range(30), max_tokens=4)
    target.submit(one)
    run(target)
    outputs = 0
    while target.idle() is not None:
        outputs += 1
        assert outputs < 50
    assert tiers.disk is not None
    assert len(tiers.disk.records) == 8
    assert target.idle() is None


def test_a_step_in_which_all_await_transfers_is_patient():
    target, executor, _, _ = tiered()
    for start in (0, 40, 0):
        target.submit(request("one", *range(start, start + 50)))
        tokens, _ = run(target)
        assert answer(tokens, "one") == alone(request("one", *range(start, start + 50)), LAYOUT, LIMIT)
    assert executor.patience > 0


def test_halves_of_a_failed_batch_order_no_transfers_again():
    target, _, tiers, _ = tiered(refuse_token(99, RuntimeError("no")))
    target.submit(request("one", *range(50)))
    run(target)
    target.submit(request("good", *range(60, 80)))
    target.submit(request("bad", *range(80, 99), 99))
    _, ends = run(target)
    assert {end.request: end.reason for end in ends} == {"good": "length", "bad": "error"}
    numbers = [one.number for one in tiers.begun]
    assert numbers
    assert len(numbers) == len(set(numbers))


def test_the_rate_of_computing_is_measured_on_prompts():
    def run_for_two_seconds(batch: Batch) -> None:
        clock.now += 2.0

    clock = Clock()
    executor = PagedExecutor(LAYOUT, PAGES, refuse=run_for_two_seconds)
    scheduler = Scheduler(CacheManager(LAYOUT, PAGES), max_context=100, max_sequences=8, step_tokens=80)
    target = Engine(scheduler, executor, clock)
    target.submit(request("one", *range(80)))
    assert target.step().statistics.cache.compute_rate == 40.0
    assert target.step().statistics.cache.compute_rate == 40.0
