"""Stages as real processes: answers equal transformers', and a stage that is killed or frozen loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from backend.library.files import ModelFiles
from tests.end_to_end.answers import Expected, client_of, streamed
from tests.end_to_end.prompts import PROMPTS
from tests.fakes.processes import RunningServer, running_server

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("stages")]

OPTIONS = ("--dtype", "float32", "--kv-pool", "512MiB", "--threads", "2")


@pytest.fixture(scope="module")
def server(starter: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), *OPTIONS, "--pp", "2") as running:
        yield running


async def test_sixteen_at_once_get_transformers_answers(server: RunningServer, expected: list[Expected]) -> None:
    assert await _answers(server) == [answer.text for answer in expected]


def test_every_stage_has_a_process_of_its_own_and_its_part_of_the_weights(server: RunningServer) -> None:
    ranks = server.ranks()
    assert len({rank["pid"] for rank in ranks} | {server.engine_pid(), server.process.pid}) == 4
    total = sum(rank["weights_bytes"] for rank in ranks)
    assert all(0.4 < rank["weights_bytes"] / total < 0.6 for rank in ranks)


def test_stages_of_one_machine_listen_on_no_address(server: RunningServer) -> None:
    tree = [psutil.Process(server.process.pid), *server.children()]
    listening = {
        (process.pid, connection.laddr.ip)
        for process in tree
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }
    assert {place for _, place in listening} <= {"127.0.0.1"}
    assert {pid for pid, _ in listening} == {server.process.pid}


def test_no_command_line_or_environment_shows_the_secret(server: RunningServer) -> None:
    for rank in server.ranks():
        process = psutil.Process(rank["pid"])
        assert process.cmdline()[-2:] == ["pipeline_ext.stage_process", "dies-with-parent"]
        assert not any("SECRET" in name.upper() for name in process.environ())


@pytest.mark.parametrize("fault", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
async def test_a_lost_stage_loses_nothing(server: RunningServer, fault: signal.Signals) -> None:
    prompts = PROMPTS[:4]
    async with client_of(server) as client:
        undisturbed = [await streamed(client, prompt, 48) for prompt in prompts]
        tasks = [asyncio.create_task(streamed(client, prompt, 48)) for prompt in prompts]
        before = server.ranks()
        await _until_tokens(server, 20)
        os.kill(before[-1]["pid"], fault)
        assert await asyncio.gather(*tasks) == undisturbed
    after = server.ranks()
    assert after[0]["pid"] == before[0]["pid"]
    assert after[-1]["pid"] != before[-1]["pid"]
    assert not psutil.pid_exists(before[-1]["pid"])
    assert _engine(server)["restarts"] == 0


def test_nothing_is_left_of_a_server_that_ends(server: RunningServer) -> None:
    processes = server.children()
    server.process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert alive == []


@pytest.mark.long
@pytest.mark.parametrize(("options", "ranks"), [(("--layers", "8,12,10"), 3), (("--pp", "2", "--tp", "2"), 4)])
async def test_more_stages_and_ranks_within_them_answer_the_same(
    starter: ModelFiles,
    tmp_path_factory: pytest.TempPathFactory,
    expected: list[Expected],
    options: tuple[str, ...],
    ranks: int,
) -> None:
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, *OPTIONS, *options) as running:
        assert len(running.ranks()) == ranks
        assert await _answers(running) == [answer.text for answer in expected]


async def _answers(server: RunningServer) -> list[str]:
    async with client_of(server) as client:
        return await asyncio.gather(*(streamed(client, prompt) for prompt in PROMPTS))


def _engine(server: RunningServer) -> dict[str, Any]:
    return server.health().json()["engines"][0]


async def _until_tokens(server: RunningServer, count: int) -> None:
    """Waits until the running answers have had so many tokens."""

    def generated() -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
        return next(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith("vllm:generation_tokens_total{"))

    before = generated()
    for _ in range(1000):
        if generated() >= before + count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("No tokens in 20 s.")
