"""Several ranks as real processes: answers equal transformers', weights are divided, and a lost rank loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backend.library.files import ModelFiles
from tests.end_to_end.answers import Expected, client_of, streamed
from tests.end_to_end.prompts import PROMPTS
from tests.fakes.processes import RunningServer, running_server
from tests.fakes.tiny_models import make_checkpoint, reference_model

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("ranks")]

OPTIONS = ("--dtype", "float32", "--kv-pool", "512MiB")


@pytest.fixture(scope="module", params=[2, 3])
def server(
    request: pytest.FixtureRequest, starter: ModelFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), *OPTIONS, "--tp", str(request.param)) as running:
        yield running


async def test_sixteen_at_once_get_transformers_answers(server: RunningServer, expected: list[Expected]) -> None:
    async with client_of(server) as client:
        limit = asyncio.Semaphore(16)

        async def one(prompt: str) -> str:
            async with limit:
                return await streamed(client, prompt)

        assert await asyncio.gather(*map(one, PROMPTS)) == [answer.text for answer in expected]


def test_every_rank_lives_and_holds_about_its_share(server: RunningServer) -> None:
    ranks = server.ranks()
    assert [rank["rank"] for rank in ranks] == list(range(len(ranks)))
    assert len({rank["pid"] for rank in ranks} | {server.engine_pid(), server.process.pid}) == len(ranks) + 2
    assert all(psutil.pid_exists(rank["pid"]) for rank in ranks)
    total = sum(rank["weights_bytes"] for rank in ranks)
    for rank in ranks:
        assert rank["weights_bytes"] == pytest.approx(total / len(ranks), rel=0.1)


def test_every_rank_tells_its_memory(server: RunningServer) -> None:
    (engine,) = httpx.get(f"{server.url}/plan", timeout=30).json()["engines"]
    ranks = server.ranks()
    assert [one["rank"] for one in engine["measured"]] == [rank["rank"] for rank in ranks]
    for rank, planned, measured in zip(ranks, engine["plan"]["ranks"], engine["measured"], strict=True):
        found = {term["name"]: term["bytes"] for term in measured["terms"]}
        assert list(found) == [term["name"] for term in planned["memory"]]
        assert found["weights"] == rank["weights_bytes"]
        assert found["kv"] == engine["plan"]["pages"] * planned["page_bytes"]
        assert measured["resident"] == pytest.approx(psutil.Process(rank["pid"]).memory_info().rss, rel=0.02)


def test_ranks_listen_on_loopback_only(server: RunningServer) -> None:
    """Rendezvous and collectives open no port that another machine could reach."""
    tree = [psutil.Process(server.process.pid), *server.children()]
    assert {rank["pid"] for rank in server.ranks()} <= {process.pid for process in tree}
    places = {
        connection.laddr.ip
        for process in tree
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }
    assert places <= {"127.0.0.1"}


async def test_a_killed_rank_loses_nothing(server: RunningServer) -> None:
    prompts = PROMPTS[:4]
    async with client_of(server) as client:
        undisturbed = [await streamed(client, prompt, 48) for prompt in prompts]
        tasks = [asyncio.create_task(streamed(client, prompt, 48)) for prompt in prompts]
        before = server.ranks()
        await _until_tokens(server, 20)
        os.kill(before[-1]["pid"], signal.SIGKILL)
        await asyncio.to_thread(server.await_health, 503, 3.0)
        assert await asyncio.gather(*tasks) == undisturbed
    await asyncio.to_thread(server.await_health, 200, 60.0)
    pids = {rank["pid"] for rank in before}
    assert pids.isdisjoint(rank["pid"] for rank in server.ranks())
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_whole_experts_on_each_rank_answer_as_transformers_does(tmp_path: Path) -> None:
    files = make_checkpoint("qwen3-moe", tmp_path / "model")
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(128)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    prompts = [torch.randint(1, 128, (length,), generator=torch.Generator().manual_seed(length)).tolist()
               for length in (3, 20, 70)]  # fmt: skip
    reference = reference_model(files)
    expected = [
        reference.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    options = ("--dtype", "float32", "--kv-pool", "64MiB", "--tp", "2", "--experts", "expert")
    with running_server(tmp_path, *options, model=str(tmp_path / "model")) as server:
        assert len(server.ranks()) == 2
        model = httpx.get(f"{server.url}/v1/models", timeout=10).json()["data"][0]["id"]
        for prompt, answer in zip(prompts, expected, strict=True):
            body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
            given = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
            assert [int(word.removeprefix("w")) for word in given.split()] == answer


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
