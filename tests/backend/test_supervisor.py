"""The supervisor over real engine processes: deaths, freezes, poison, cancellation; no child stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psutil
import pytest
import structlog
from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import EngineUnavailableError
from backend.events import End, EngineStatistics, Start, Token
from backend.lasting_statistics import CACHE_COUNTERS
from backend.library.files import ModelFiles
from backend.measured_rank import MeasuredRank
from backend.messages import Ready, StepOutput
from backend.planner.plan import MemoryTerm, Rank
from backend.request import Request, Sampling
from backend.revival import RevivalPolicy
from backend.supervisor import EngineSupervisor
from kvcache.statistics import CacheMap, CacheStatistics
from tests.fakes.engine_main import PAGES
from tests.fakes.engine_options import EngineOptions, expected_answer
from tests.fakes.plans import plan

SETTINGS = EngineSettings(files=ModelFiles(name="test", format="gguf", weights=("/w",), folder="/w", bytes=1))
PROMPT = (1, 2, 3)
POISON = 1000  # never an answer: those are below 997

Supervised = Callable[..., AbstractAsyncContextManager[EngineSupervisor]]


@asynccontextmanager
async def supervised(
    options: EngineOptions | None = None, policy: RevivalPolicy | None = None, ready: bool = True
) -> AsyncIterator[EngineSupervisor]:
    supervisor = EngineSupervisor(SETTINGS, command=(options or EngineOptions()).command(), policy=policy)
    await supervisor.start()
    if ready:
        assert await supervisor.wait_ready(10)
    try:
        yield supervisor
    finally:
        await supervisor.stop()
        assert psutil.Process().children(recursive=True) == []


def request(name: str = "a", tokens: int = 60, prompt: tuple[int, ...] = PROMPT, **more: float) -> Request:
    return Request(id=name, prompt=prompt, sampling=Sampling(max_tokens=tokens), timeout=more.get("timeout"))


def kill(supervisor: EngineSupervisor, how: signal.Signals = signal.SIGKILL) -> None:
    pid = supervisor.status().pid
    assert pid is not None
    os.kill(pid, how)


async def collect(supervisor: EngineSupervisor, wanted: Request) -> list[Start | Token | End]:
    return [event async for event in supervisor.generate(wanted)]


def check_answer(events: list[Start | Token | End], prompt: tuple[int, ...], tokens: int) -> None:
    """Each index once and in order, the fault-free tokens, one End."""
    start, *answer, end = events
    assert isinstance(start, Start)
    assert isinstance(end, End)
    assert end.reason == "length"
    assert [event.index for event in answer if isinstance(event, Token)] == list(range(tokens))
    assert [event.token for event in answer if isinstance(event, Token)] == expected_answer(prompt, tokens)


async def test_sizes_are_told_before_the_first_step() -> None:
    async with supervised() as supervisor:
        cache = supervisor.statistics().cache
        assert cache.pages_total == cache.pages_free == PAGES


async def test_counters_go_on_over_a_restart_and_gauges_do_not() -> None:
    supervisor = EngineSupervisor(SETTINGS)
    cache = CacheStatistics(pages_total=9, pages_used=4, hit_tokens=5, stored_pages=2, disk_fetch_rate=7.0)
    step = StepOutput((), (), EngineStatistics(steps=3, cache=cache), cache_map=CacheMap(1, bytes(9)))
    supervisor._receive(step)
    assert supervisor.cache_map() == CacheMap(1, bytes(9))
    supervisor._leave_ready()
    died = supervisor.statistics().cache
    assert (died.pages_total, died.pages_used, died.hit_tokens, died.disk_fetch_rate) == (9, 0, 5, 0.0)
    assert supervisor.cache_map() is None
    supervisor._receive(step)
    again = supervisor.statistics()
    assert (again.steps, again.cache.hit_tokens, again.cache.stored_pages) == (6, 10, 4)
    assert (again.cache.pages_total, again.cache.pages_used, again.cache.disk_fetch_rate) == (9, 4, 7.0)


def test_every_figure_of_the_cache_is_a_counter_or_is_known_not_to_be() -> None:
    gauges = {name for name in CacheStatistics.__struct_fields__ if name not in CACHE_COUNTERS}
    assert all(
        name.endswith(("_rate", "_total", "_bytes", "_used")) or name.startswith(("pages_", "disk_pages"))
        for name in gauges
    )
    assert set(CACHE_COUNTERS) < set(CacheStatistics.__struct_fields__)


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "waited too long"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_killed_in_mid_stream_every_request_goes_on_with_the_same_tokens() -> None:
    async with supervised() as supervisor:
        prompts = [(1, 2, number) for number in range(8)]
        answers = [
            asyncio.create_task(collect(supervisor, request(str(number), 80, prompt)))
            for number, prompt in enumerate(prompts)
        ]
        for _ in range(2):
            await asyncio.sleep(0.15)
            kill(supervisor)
            assert await until(lambda: supervisor.status().state == "restarting", 2) < 2
            assert await supervisor.wait_ready(10)
        for prompt, events in zip(prompts, await asyncio.gather(*answers), strict=True):
            check_answer(events, prompt, 80)
        assert supervisor.status().restarts == 2
        assert supervisor.statistics().generation_tokens >= 8 * 80
        assert supervisor.statistics().running == 0


async def test_a_frozen_engine_is_noticed_and_replaced() -> None:
    async with supervised() as supervisor:
        answer = asyncio.create_task(collect(supervisor, request(tokens=200)))
        await asyncio.sleep(0.2)
        kill(supervisor, signal.SIGSTOP)
        assert await until(lambda: supervisor.status().state == "restarting", 4) < 4
        check_answer(await answer, PROMPT, 200)


async def test_a_request_that_kills_the_engine_is_ended_and_the_others_go_on() -> None:
    policy = RevivalPolicy(first_delay=0.01)
    async with supervised(EngineOptions(poison=POISON), policy) as supervisor:
        early = asyncio.create_task(collect(supervisor, request("early", 100, (5,))))
        await asyncio.sleep(0.1)
        poisoned = asyncio.create_task(collect(supervisor, request("poison", 10, (POISON,))))
        beside = asyncio.create_task(collect(supervisor, request("beside", 50, (6,))))
        (end,) = await poisoned
        assert isinstance(end, End)
        assert end.reason == "error"
        assert "SIGKILL" in end.message
        check_answer(await early, (5,), 100)
        check_answer(await beside, (6,), 50)
        assert supervisor.status().state == "ready"
        assert supervisor.status().restarts == 3


async def test_two_poisons_among_many_are_both_found() -> None:
    policy = RevivalPolicy(first_delay=0.01)
    async with supervised(EngineOptions(poison=POISON), policy) as supervisor:
        prompts = [(1,), (POISON,), (2,), (POISON, 1), (3,)]
        answers = await asyncio.gather(
            *(collect(supervisor, request(str(n), 20, prompt)) for n, prompt in enumerate(prompts))
        )
        ends = [events[-1] for events in answers]
        assert [end.reason for end in ends if isinstance(end, End)] == [
            "length", "error", "length", "error", "length"
        ]  # fmt: skip


async def test_an_engine_that_never_comes_up_fails_with_its_reason() -> None:
    policy = RevivalPolicy(deaths=3, first_delay=0.01)
    async with supervised(EngineOptions(crash_at_start=True), policy, ready=False) as supervisor:
        events = await collect(supervisor, request())
        assert not await supervisor.wait_ready()
        (end,) = events
        assert isinstance(end, End)
        assert end.reason == "error"
        assert supervisor.status().state == "failed"
        assert "exited with status 1" in supervisor.status().error
        with pytest.raises(EngineUnavailableError):
            await anext(supervisor.generate(request("b")))


async def test_a_program_that_cannot_be_spawned_fails_too() -> None:
    supervisor = EngineSupervisor(
        SETTINGS, command=("/no/such/program",), policy=RevivalPolicy(deaths=2, first_delay=0.01)
    )
    await supervisor.start()
    assert not await supervisor.wait_ready(5)
    assert "could not be spawned" in supervisor.status().error
    await supervisor.stop()


async def test_an_engine_that_talks_nonsense_is_ended() -> None:
    nonsense = "import socket, sys, time; peer = socket.socket(fileno=int(sys.argv[1])); "
    nonsense += "peer.send(bytes([255] * 8)); time.sleep(60)"
    policy = RevivalPolicy(deaths=2, first_delay=0.01)
    supervisor = EngineSupervisor(SETTINGS, command=(sys.executable, "-c", nonsense), policy=policy)
    await supervisor.start()
    assert not await supervisor.wait_ready(10)
    assert "broke the protocol" in supervisor.status().error
    await supervisor.stop()
    assert psutil.Process().children(recursive=True) == []


async def test_a_refused_start_is_not_tried_again() -> None:
    async with supervised(EngineOptions(start_error="The file is broken"), ready=False) as supervisor:
        assert not await supervisor.wait_ready(10)
        status = supervisor.status()
        assert status.state == "failed"
        assert status.restarts == 0
        assert status.error.splitlines() == ["The file is broken", "It is a test.", "Write another."]


async def test_requests_wait_while_the_engine_starts_and_deadlines_hold_meanwhile() -> None:
    async with supervised(EngineOptions(start_seconds=0.6), ready=False) as supervisor:
        hurried = asyncio.create_task(collect(supervisor, request("hurried", timeout=0.1)))
        patient = asyncio.create_task(collect(supervisor, request("patient", 5, timeout=30)))
        assert await hurried == [End("hurried", "deadline")]
        assert supervisor.status().state == "starting"
        check_answer(await patient, PROMPT, 5)


async def test_closing_the_iterator_cancels_in_the_engine() -> None:
    async with supervised() as supervisor:
        events = supervisor.generate(request(tokens=3000))
        assert await anext(events) == Start("a", 0)
        assert isinstance(await anext(events), Token)
        await events.aclose()
        check_answer(await collect(supervisor, request("next", 20)), PROMPT, 20)
        assert supervisor.statistics().running == 0
        assert supervisor.statistics().generation_tokens < 100


async def test_drain_refuses_new_requests_and_waits_for_running_ones() -> None:
    async with supervised() as supervisor:
        running = asyncio.create_task(collect(supervisor, request(tokens=50)))
        await asyncio.sleep(0.05)
        drained = asyncio.create_task(supervisor.drain())
        await asyncio.sleep(0)
        assert supervisor.status().state == "draining"
        with pytest.raises(EngineUnavailableError):
            await anext(supervisor.generate(request("late")))
        await drained
        check_answer(await running, PROMPT, 50)


async def test_stop_ends_running_requests_as_cancelled() -> None:
    async with supervised() as supervisor:
        running = asyncio.create_task(collect(supervisor, request(tokens=3000)))
        await asyncio.sleep(0.1)
        await supervisor.stop()
        assert (await running)[-1] == End("a", "cancelled")


async def test_stop_ends_a_frozen_engine_and_one_that_is_starting() -> None:
    async with supervised() as supervisor:
        kill(supervisor, signal.SIGSTOP)
    async with supervised(EngineOptions(start_seconds=30), ready=False) as supervisor:
        await until(lambda: supervisor.status().pid is not None, 5)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_rank_that_dies_or_freezes_costs_a_pause_and_is_named(how: signal.Signals) -> None:
    async with supervised(EngineOptions(ranks=2)) as supervisor:
        ranks = supervisor.status().ranks
        assert [rank.rank for rank in ranks] == [0, 1]
        answer = asyncio.create_task(collect(supervisor, request(tokens=200)))
        await asyncio.sleep(0.2)
        os.kill(ranks[1].pid, how)
        await until(lambda: supervisor.status().state == "restarting", 30)
        named = "was killed by SIGKILL" if how == signal.SIGKILL else "it gave no sign of life"
        assert f"rank 1 (pid {ranks[1].pid})" in supervisor.status().error
        assert named in supervisor.status().error
        check_answer(await answer, PROMPT, 200)
        assert supervisor.status().error == ""
        assert not {rank.pid for rank in ranks} & {rank.pid for rank in supervisor.status().ranks}
        assert not any(_runs(rank.pid) for rank in ranks)


async def test_a_frozen_engine_takes_its_ranks_along() -> None:
    async with supervised(EngineOptions(ranks=2)) as supervisor:
        ranks = supervisor.status().ranks
        answer = asyncio.create_task(collect(supervisor, request(tokens=100)))
        await asyncio.sleep(0.1)
        kill(supervisor, signal.SIGSTOP)
        check_answer(await answer, PROMPT, 100)
        assert not any(_runs(rank.pid) for rank in ranks)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("ranks", [0, 2])
async def test_memory_is_measured_at_the_start_and_whenever_asked(ranks: int) -> None:
    async with supervised(EngineOptions(ranks=ranks)) as supervisor:
        first = await supervisor.measure()
        assert [one.rank for one in first] == list(range(max(1, ranks)))
        assert [one.terms[0].bytes for one in first] == [1234 + rank for rank in range(max(1, ranks))]
        check_answer(await collect(supervisor, request()), PROMPT, 60)
        together = await asyncio.gather(supervisor.measure(), supervisor.measure())
        assert together[0] == together[1]
        if not ranks:
            # The fake holds more with each step.
            assert together[0][0].resident > first[0].resident


async def test_an_engine_in_a_long_step_tells_its_memory_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.supervisor.MEASURE_SECONDS", 0.2)
    async with supervised(EngineOptions(step_seconds=1.0)) as supervisor:
        first = await supervisor.measure()
        running = asyncio.create_task(collect(supervisor, request(tokens=1)))
        await asyncio.sleep(0.3)
        assert await supervisor.measure() == first
        await running
        assert (await supervisor.measure())[0].resident > first[0].resident


async def test_who_waits_for_a_measurement_is_not_left_waiting_by_a_death() -> None:
    async with supervised(EngineOptions(step_seconds=1.0)) as supervisor:
        running = asyncio.create_task(collect(supervisor, request(tokens=1)))
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(supervisor.measure())
        await asyncio.sleep(0.05)
        kill(supervisor)
        assert await waiting == ()
        await running
        assert len(await supervisor.measure()) == 1


async def test_memory_that_differs_from_the_plan_is_logged_once_it_is_known() -> None:
    planned = plan(ranks=(Rank(0, "cpu", (MemoryTerm("weights", 1 << 30),)),))
    ready = Ready(planned, 64, 97, (1,), (1,), ("cpu",))
    for size, said in ((2 << 30, 1), (1 << 30, 0)):
        supervisor = EngineSupervisor(SETTINGS)
        measured = (MeasuredRank(0, "cpu", (MemoryTerm("weights", size),), size),)
        with structlog.testing.capture_logs() as logs:
            supervisor._receive(replace(ready, measured=measured))
        found = [entry["difference"] for entry in logs if entry["event"] == "memory differs from the plan"]
        assert len(found) == said
        assert all("2048 MiB measured, 1024 MiB planned" in line for line in found)
