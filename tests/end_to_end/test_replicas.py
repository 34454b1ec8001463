"""Two copies of the real model as one: one is killed, again and again, and no answer has another token for it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.end_to_end.answers import client_of, streamed
from tests.end_to_end.prompts import PROMPTS
from tests.fakes.processes import running_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(240), pytest.mark.xdist_group("starter")]
OPTIONS = ("--dtype", "float32", "--kv-pool", "256MiB", "--device", "cpu", "--threads", "2", "--replicas", "2")


async def test_killing_a_copy_loses_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path, *OPTIONS) as server:
        async with client_of(server) as client:
            prompts = PROMPTS[:4]
            while [one["state"] for one in copies(server.health().json())] != ["ready", "ready"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            undisturbed = [await streamed(client, prompt, 48) for prompt in prompts]
            tasks = [asyncio.create_task(streamed(client, prompt, 48)) for prompt in prompts]
            await asyncio.sleep(0.3)
            both = copies(server.health().json())
            os.kill(both[0]["pid"], signal.SIGKILL)
            await asyncio.sleep(0.1)
            health = server.health()
            assert health.status_code == 200
            # New requests do not wait for the one that is away.
            assert await streamed(client, prompts[0], 48) == undisturbed[0]
            assert await asyncio.gather(*tasks) == undisturbed
            assert copies(server.health().json())[0]["restarts"] == 1


def copies(health: dict) -> list[dict]:
    return health["engines"][0]["replicas"]
