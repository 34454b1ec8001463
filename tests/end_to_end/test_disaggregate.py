"""Prefill and decode apart on the real model: the same answers, no prompt computed twice, also when engines die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.processes import RunningServer, running_server
from tests.faults.cache_state import cache_statistics, conserved

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("disaggregate")]

OPTIONS = ("--dtype", "float32", "--max-context", "1024", "--kv-pool", "200MiB")
LONG = [200 + 7 * index % 3000 for index in range(300)]
SHORT = LONG[:12]


def answer(server: RunningServer, prompt: list[int]) -> tuple[str, int]:
    """The text, and how many tokens of the prompt were cached."""
    body = {"model": "starter", "prompt": prompt, "max_tokens": 24, "temperature": 0}
    found = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    assert found["usage"]["completion_tokens"] == 24
    return found["choices"][0]["text"], found["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with running_server(tmp_path_factory.mktemp("whole"), *OPTIONS) as server:
        return [answer(server, prompt)[0] for prompt in (LONG, SHORT)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, expected: list[str]) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("apart")
    with running_server(folder, *OPTIONS, "--disaggregate") as server:
        yield server
        server.process.terminate()
        server.process.wait(30)
    assert not list(Path("/dev/shm").glob(f"shardwise-pages-{server.process.pid}-*"))


def test_answers_are_the_same_and_pages_came_over(server: RunningServer, expected: list[str]) -> None:
    assert [answer(server, prompt)[0] for prompt in (LONG, SHORT)] == expected
    statistics = cache_statistics(server.url)
    assert statistics["disk_hit_tokens"] == 288
    assert statistics["disk_fetched_pages"] == 18
    assert answer(server, LONG) == (expected[0], 288)
    assert [rank["rank"] for rank in server.ranks()] == [0, 1]
    assert len({rank["pid"] for rank in server.ranks()}) == 2


@pytest.mark.long
@pytest.mark.parametrize("which", [0, 1])
def test_an_engine_that_dies_costs_no_answer(server: RunningServer, expected: list[str], which: int) -> None:
    """The first is the one for answers."""
    os.kill(server.ranks()[which]["pid"], signal.SIGKILL)
    assert answer(server, LONG)[0] == expected[0]
    server.await_health(200, 60)
    assert answer(server, LONG)[0] == expected[0]
    assert conserved(cache_statistics(server.url))
