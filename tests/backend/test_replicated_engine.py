"""Several engines as one: who gets a request, and that it goes on elsewhere with the same tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from backend.errors import EngineUnavailableError
from backend.events import End, Start, Token
from backend.replicated_engine import ReplicatedEngine
from backend.request import Request, Sampling
from tests.fakes.engine_client import FakeEngine


class Replica(FakeEngine):
    """A fake that can fail for good, or go away with all that it runs, as a supervisor's engine does."""

    async def fail(self) -> None:
        self.state = "failed"
        self.end, self.fail_after = End("", "error", "it died five times"), -1

    async def _events(self, request: Request) -> AsyncIterator[Start | Token | End]:
        async for event in super()._events(request):
            while self.state == "restarting":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            if self.state == "failed":
                yield End(request.id, "error", "it died five times")
                return
            yield event


PROMPT = tuple(range(100, 140))


def asked(name: str = "r", count: int = 30, **options: Any) -> Request:
    return Request(id=name, prompt=PROMPT, sampling=Sampling(max_tokens=count), **options)


def answer(count: int = 30) -> list[int]:
    return [PROMPT[index % len(PROMPT)] for index in range(count)]


async def collect(engine: ReplicatedEngine, request: Request, tokens: list[Token] | None = None) -> list[Any]:
    events: list[Any] = []
    async with aclosing(engine.generate(request)) as stream:
        async for event in stream:
            events.append(event)
            if tokens is not None and isinstance(event, Token):
                tokens.append(event)
    return events


def assert_whole(events: list[Any], count: int = 30) -> None:
    """Each token once, in order; at most one Start, one End."""
    tokens = [event for event in events if isinstance(event, Token)]
    assert [token.index for token in tokens] == list(range(count))
    assert [token.token for token in tokens] == answer(count)
    assert isinstance(events[-1], End)
    assert events[-1].reason == "length"
    assert sum(isinstance(event, Start) for event in events) == 1
    assert sum(isinstance(event, End) for event in events) == 1


async def begun(tokens: list[Token], count: int = 3) -> None:
    while len(tokens) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


@pytest.fixture
def both() -> list[Replica]:
    return [Replica(delay=0.004), Replica(delay=0.004)]


async def test_requests_are_shared(both: list[Replica]) -> None:
    engine = ReplicatedEngine(both)
    answers = await asyncio.gather(*(collect(engine, asked(f"r{number}")) for number in range(6)))
    for events in answers:
        assert_whole(events)
    assert [len(one.requests) for one in both] == [3, 3]


async def test_an_idle_pair_answers_where_the_prompt_is_known(both: list[Replica]) -> None:
    engine = ReplicatedEngine(both)
    both[0].state = "restarting"
    await collect(engine, asked("first", 2))
    both[0].state = "ready"
    await collect(engine, asked("second", 2))
    assert [len(one.requests) for one in both] == [0, 2]


async def test_a_request_goes_on_where_its_engine_has_failed(both: list[Replica]) -> None:
    engine, tokens = ReplicatedEngine(both), []
    running = asyncio.ensure_future(collect(engine, asked(), tokens))
    await begun(tokens)
    await both[0].fail()
    assert_whole(await running)
    assert both[1].requests[0].prior == tuple(answer(len(both[1].requests[0].prior)))
    assert len(both[1].requests[0].prior) >= 3
    assert engine.status().state == "ready"


async def test_a_request_leaves_an_engine_that_stays_away(both: list[Replica]) -> None:
    engine, tokens = ReplicatedEngine(both, away=0.05), []
    await engine.start()
    running = asyncio.ensure_future(collect(engine, asked(), tokens))
    await begun(tokens)
    both[0].state = "restarting"
    assert_whole(await running)
    assert both[0].cancelled == ["r"]
    both[1].state = "failed"
    await engine.stop()


async def test_a_request_waits_for_an_engine_that_is_soon_back(both: list[Replica]) -> None:
    engine, tokens = ReplicatedEngine(both, away=60), []
    await engine.start()
    running = asyncio.ensure_future(collect(engine, asked(), tokens))
    await begun(tokens)
    both[0].state = "restarting"
    await asyncio.sleep(0.2)
    assert not running.done()
    both[0].state = "ready"
    assert_whole(await running)
    assert both[1].requests == []
    await engine.stop()


async def test_new_requests_go_to_who_is_ready(both: list[Replica]) -> None:
    both[0].state = "restarting"
    engine = ReplicatedEngine(both)
    for number in range(3):
        assert_whole(await collect(engine, asked(f"r{number}")))
    assert both[0].requests == []


async def test_where_none_is_ready_a_request_waits_for_the_first(both: list[Replica]) -> None:
    both[0].state = both[1].state = "starting"
    engine = ReplicatedEngine(both)
    running = asyncio.ensure_future(collect(engine, asked()))
    await asyncio.sleep(0.05)
    both[1].state = "ready"
    assert_whole(await running)


async def test_a_waiting_request_ends_at_its_deadline(both: list[Replica]) -> None:
    both[0].state = both[1].state = "restarting"
    events = await collect(ReplicatedEngine(both), asked(timeout=0.05))
    assert events == [End("r", "deadline")]


async def test_where_all_have_failed_nothing_is_taken_and_what_ran_ends(both: list[Replica]) -> None:
    engine, tokens = ReplicatedEngine(both), []
    running = asyncio.ensure_future(collect(engine, asked(), tokens))
    await begun(tokens)
    for one in both:
        await one.fail()
    events = await running
    assert isinstance(events[-1], End)
    assert events[-1].reason == "error"
    assert sum(isinstance(event, End) for event in events) == 1
    with pytest.raises(EngineUnavailableError, match="All engines of fake have failed"):
        await collect(engine, asked("later"))
    assert engine.status().state == "failed"


async def test_a_request_that_is_at_fault_is_not_carried_on(both: list[Replica]) -> None:
    both[0].fail_after = 5
    events = await collect(ReplicatedEngine(both), asked())
    assert events[-1] == End("r", "error", "the logits were not numbers")
    assert both[1].requests == []


async def test_closing_an_answer_cancels_it_where_it_runs(both: list[Replica]) -> None:
    engine = ReplicatedEngine(both)
    async with aclosing(engine.generate(asked())) as events:
        await anext(events)
    assert both[0].cancelled == ["r"]
    assert both[0].running == set()


async def test_what_is_told_is_of_both(both: list[Replica]) -> None:
    both[0].max_context, both[1].max_context = 900, 1000
    engine = ReplicatedEngine(both)
    await collect(engine, asked())
    both[0].state, both[0].error = "restarting", "The engine died."
    status = engine.status()
    assert status.state == "ready"
    assert [one.state for one in status.replicas] == ["restarting", "ready"]
    assert [rank.rank for rank in status.ranks] == [0, 1]
    assert status.error == "Copy 1: The engine died."
    assert status.restarts == 4
    assert engine.max_context == 900
    statistics = engine.statistics()
    assert statistics.generation_tokens == 30
    assert statistics.cache.pages_total == 200


async def test_draining_refuses_what_is_new_and_waits_for_what_runs(both: list[Replica]) -> None:
    engine, tokens = ReplicatedEngine(both), []
    await engine.start()
    running = asyncio.ensure_future(collect(engine, asked(), tokens))
    await begun(tokens)
    await engine.drain()
    assert_whole(await running)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        await collect(engine, asked("later"))
    await engine.stop()
