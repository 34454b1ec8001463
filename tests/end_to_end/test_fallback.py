"""The engine of the real model is killed: meanwhile the fallback answers by its name, and what ran goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from backend.library.files import ModelFiles
from tests.end_to_end.answers import client_of, streamed
from tests.end_to_end.prompts import PROMPTS
from tests.fakes.processes import RunningServer, running_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(240), pytest.mark.xdist_group("starter")]
OPTIONS = ("--dtype", "float32", "--kv-pool", "256MiB", "--max-context", "512", "--device", "cpu")


def chat(server: RunningServer) -> httpx.Response:
    question = {"model": "starter", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    return httpx.post(f"{server.url}/v1/chat/completions", json=question, timeout=60)


def until(condition: object, seconds: float = 60.0) -> None:
    began = time.monotonic()
    while not condition():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


async def test_while_the_engine_is_away_the_fallback_answers(starter: ModelFiles, tmp_path: Path) -> None:
    spare = tmp_path / "spare.gguf"
    spare.symlink_to(starter.weights[0])
    with running_server(tmp_path, *OPTIONS, "--fallback", str(spare)) as server:
        until(lambda: "is ready, too" in server.log.read_text())
        assert chat(server).json()["model"] == "starter"
        async with client_of(server) as client:
            undisturbed = await streamed(client, PROMPTS[0], 64)
            running = asyncio.create_task(streamed(client, PROMPTS[0], 64))
            await asyncio.sleep(0.1)
            os.kill(server.engine_pid(), signal.SIGKILL)
            await asyncio.to_thread(until, lambda: server.health().json()["status"] == "degraded", 5.0)
            answer = await asyncio.to_thread(chat, server)
            assert answer.status_code == 200
            assert answer.json()["model"] == str(spare)
            assert answer.headers["x-shardwise-fallback"] == "starter"
            assert await running == undisturbed
        until(lambda: server.health().json()["status"] == "ready")
        assert chat(server).json()["model"] == "starter"


def test_a_fallback_that_cannot_start_is_a_warning(starter: ModelFiles, tmp_path: Path) -> None:
    """Its config names an architecture that no engine here serves."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((Path(starter.folder) / name).read_bytes())
    (broken / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    header = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (broken / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with running_server(tmp_path, *OPTIONS, "--fallback", str(broken)) as server:
        until(lambda: "Warning: the fallback" in server.log.read_text())
        assert server.health().json()["status"] == "ready"
        assert chat(server).status_code == 200
