"""Engine: one step, its clock, and failures that stay with the request that caused them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backend.batch import Batch
from backend.engine import Engine
from backend.errors import OutOfMemoryError
from backend.events import End, Token
from backend.executor import DeviceLostError
from backend.request import Request, Sampling
from backend.scheduler import Scheduler
from kvcache.cache_manager import CacheManager
from kvcache.layout import Keeps, LayerCache, build_layout
from tests.fakes.executor import PagedExecutor, alone

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
