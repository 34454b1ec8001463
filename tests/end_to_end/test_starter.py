"""The main job on the real model: answers equal transformers' own, alone and together, also when the engine dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from transformers import AutoTokenizer

from app.client import ShardwiseClient
from backend.library.files import ModelFiles
from tests.end_to_end.answers import ANSWER_TOKENS, Expected, client_of, streamed
from tests.end_to_end.prompts import PROMPTS
from tests.fakes.processes import RunningServer, running_server

# Every test here uses the one server: they run in one process, in order.
pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("starter")]


@pytest.fixture(scope="module")
def server(starter: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--dtype", "float32", "--kv-pool", "512MiB")
    with running_server(tmp_path_factory.mktemp("server"), *options) as running:
        yield running


def test_listens_on_its_one_loopback_port_only(server: RunningServer) -> None:
    """No child opens a port of its own, and the process that renders chats is up before the first chat."""
    tree = [psutil.Process(server.process.pid), *server.children()]
    assert len(tree) >= 3
    listening = [
        connection.laddr
        for process in tree
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    ]
    port = int(server.url.rsplit(":", 1)[1])
    assert listening == [("127.0.0.1", port)]


async def test_streams_transformers_answers_one_at_a_time(server: RunningServer, expected: list[Expected]) -> None:
    async with client_of(server) as client:
        for prompt, answer in zip(PROMPTS, expected, strict=True):
            assert await streamed(client, prompt) == answer.text


async def test_streams_the_same_answers_when_sixteen_run_at_once(
    server: RunningServer, expected: list[Expected]
) -> None:
    async with client_of(server) as client:
        limit = asyncio.Semaphore(16)

        async def one(prompt: str) -> str:
            async with limit:
                return await streamed(client, prompt)

        assert await asyncio.gather(*map(one, PROMPTS)) == [answer.text for answer in expected]


async def test_completes_text(server: RunningServer, starter: ModelFiles, expected: list[Expected]) -> None:
    """The same prompt, already rendered, through /v1/completions, streamed and whole; usage counts the tokens."""
    tokenizer = AutoTokenizer.from_pretrained(starter.folder)
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    async with client_of(server) as client:
        whole = await client.completions.create(model="starter", prompt=ids, temperature=0, max_tokens=ANSWER_TOKENS)
        assert whole.choices[0].text == expected[0].text
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == len(ids)
        assert whole.usage.completion_tokens == len(expected[0].tokens)
        stream = await client.completions.create(
            model="starter", prompt=ids, temperature=0, max_tokens=ANSWER_TOKENS, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]) == expected[0].text


async def test_a_seed_draws_the_same_answer_alone_and_in_company(server: RunningServer) -> None:
    async with client_of(server) as client:

        async def drawn(seed: int) -> str:
            answer = await client.chat.completions.create(
                model="starter", messages=[{"role": "user", "content": PROMPTS[2]}], temperature=1, seed=seed,
                max_completion_tokens=16,
            )  # fmt: skip
            return answer.choices[0].message.content or ""

        alone = await drawn(7)
        company = await asyncio.gather(*(drawn(seed) for seed in range(4, 12)))
        assert company[3] == alone
        assert len(set(company)) > 1


def test_a_long_prompt_leaves_no_page_behind(server: RunningServer) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 150
    answer = httpx.post(
        f"{server.url}/v1/completions", json={"model": "starter", "prompt": text, "max_tokens": 4}, timeout=120
    )
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] > 1024
    assert _pages_used(server) == 0


async def test_the_plan_stands_beside_what_the_engine_takes(server: RunningServer) -> None:
    client = ShardwiseClient(server.url)
    (engine,) = await client.plan()
    await client.aclose()
    (planned,), (measured,) = engine.plan.ranks, engine.measured
    assert [term.name for term in measured.terms] == [term.name for term in planned.memory]
    expected = {term.name: term.bytes for term in planned.memory}
    found = {term.name: term.bytes for term in measured.terms}
    assert found["weights"] == pytest.approx(expected["weights"], rel=0.005)
    assert found["kv"] == expected["kv"]
    # The requests of these tests were steps of fewer tokens and sequences than a step may have.
    assert found["activations"] < 1.5 * expected["activations"]
    # The kernels may have been compiled in this very process, whose compiler then keeps memory.
    assert found["libraries"] == pytest.approx(expected["libraries"], rel=0.3)
    held = psutil.Process(server.engine_pid()).memory_info().rss
    assert measured.resident == pytest.approx(held, rel=0.02)
    assert held < 1.2 * sum(expected.values())


async def test_killing_the_engine_in_mid_stream_loses_nothing(server: RunningServer) -> None:
    async with client_of(server) as client:
        prompts = PROMPTS[:4]
        undisturbed = [await streamed(client, prompt, 64) for prompt in prompts]
        tasks = [asyncio.create_task(streamed(client, prompt, 64)) for prompt in prompts]
        victim = server.engine_pid()
        await _until_decoding(server)
        assert _decoding_process(server) == victim
        os.kill(victim, signal.SIGKILL)
        noticed = await asyncio.to_thread(server.await_health, 503, 2.0)
        assert noticed < 2.0
        assert await asyncio.gather(*tasks) == undisturbed
    assert server.health().status_code == 200
    assert server.engine_pid() != victim
    assert _pages_used(server) == 0


def test_a_first_signal_finishes_answers_and_leaves_no_process(starter: ModelFiles, tmp_path: Path) -> None:
    with running_server(tmp_path, "--dtype", "float32", "--kv-pool", "256MiB") as server:
        children = server.children()
        assert children
        body = {
            "model": "starter",
            "prompt": "Once upon a time",
            "max_tokens": 60,
            "temperature": 0,
            "ignore_eos": True,
        }
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=60) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line.startswith("data: "))
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
        assert not any(child.is_running() for child in children)


def _metric(server: RunningServer, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def _pages_used(server: RunningServer) -> float:
    """The share of pages in use once the last request's pages are back, or after 5 s."""
    used = 1.0
    for _ in range(50):
        used = _metric(server, "vllm:kv_cache_usage_perc")
        if used == 0:
            break
        time.sleep(0.1)
    return used


async def _until_decoding(server: RunningServer) -> None:
    """Waits until the running answers have had some tokens."""
    before = _metric(server, "vllm:generation_tokens_total")
    for _ in range(1000):
        if _metric(server, "vllm:generation_tokens_total") >= before + 40:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("No tokens in 20 s.")


def _decoding_process(server: RunningServer) -> int:
    """The child that uses the processor while answers run."""
    before = {child.pid: sum(child.cpu_times()[:2]) for child in server.children()}
    time.sleep(0.3)
    used = {child.pid: sum(child.cpu_times()[:2]) - before.get(child.pid, 0.0) for child in server.children()}
    return max(used, key=lambda pid: used[pid])
