"""The fallback model: it answers new requests for the main one while that is away, under its own name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from app.keys import KeyStore
from app.rest.served import ServedEngine
from app.rest.server import create_app
from backend.chat_template import ChatRenderer, ChatTemplate
from backend.engine_client import EngineState, RankStatus
from tests.fakes.engine_client import FakeEngine

AWAY: tuple[EngineState, ...] = ("starting", "restarting", "failed")


class Mending(FakeEngine):
    """One of its stages is being replaced while `mending` is set."""

    mending = False

    def status(self) -> Any:
        status = super().status()
        return replace(status, ranks=(RankStatus(0, 1, "cpu", "lost" if self.mending else "ready", 1),))


@dataclass
class Pair:
    main: Mending
    spare: FakeEngine
    http: httpx.AsyncClient

    async def chat(self, **body: Any) -> httpx.Response:
        asked = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 4}
        asked = {**asked, "model": self.main.model, **body}
        return await self.http.post("/v1/chat/completions", json=asked)


@pytest.fixture
async def pair(starter_served: ServedEngine, tmp_path: Path) -> AsyncIterator[Pair]:
    main, spare = Mending("org/main model"), FakeEngine("spare", max_context=512)
    renderer, tokenizer = ChatRenderer(), starter_served.tokenizer
    template = ChatTemplate(tokenizer, starter_served.template.text, renderer)
    engines = {one.model: ServedEngine(one, tokenizer, template) for one in (main, spare)}
    app = create_app(engines, KeyStore(tmp_path / "keys.json"), fallback="spare")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
        yield Pair(main, spare, http)
    await renderer.close()


async def test_while_the_main_engine_serves_it_answers(pair: Pair) -> None:
    answer = await pair.chat()
    assert answer.json()["model"] == "org/main model"
    assert "x-shardwise-fallback" not in answer.headers
    assert pair.spare.requests == []


@pytest.mark.parametrize("state", AWAY)
async def test_while_it_is_away_the_fallback_answers_by_its_name(pair: Pair, state: EngineState) -> None:
    pair.main.state = state
    answer = await pair.chat(model="org/main model")
    assert answer.status_code == 200
    assert answer.json()["model"] == "spare"
    assert answer.headers["x-shardwise-fallback"] == "org/main model"
    assert len(pair.spare.requests) == 1
    assert pair.main.requests == []
    health = await pair.http.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "degraded"
    assert health.json()["fallback"] == "spare"
    assert [engine["state"] for engine in health.json()["engines"]] == [state, "ready"]


async def test_a_stage_that_is_being_replaced_counts_as_away(pair: Pair) -> None:
    pair.main.mending = True
    assert (await pair.chat()).json()["model"] == "spare"
    pair.main.mending = False
    assert (await pair.chat()).json()["model"] == "org/main model"


async def test_a_stream_names_it_in_each_event(pair: Pair) -> None:
    pair.main.state = "restarting"
    answer = await pair.chat(stream=True)
    assert answer.headers["x-shardwise-fallback"] == "org/main model"
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    assert {json.loads(event)["model"] for event in events} == {"spare"}


async def test_its_own_limits_hold(pair: Pair) -> None:
    pair.main.state = "restarting"
    refused = await pair.chat(max_tokens=600)
    assert refused.status_code == 400
    assert "512" in refused.text


async def test_who_names_the_fallback_gets_it_and_no_header(pair: Pair) -> None:
    answer = await pair.chat(model="spare")
    assert answer.json()["model"] == "spare"
    assert "x-shardwise-fallback" not in answer.headers


async def test_both_are_listed_and_counted_apart(pair: Pair) -> None:
    pair.main.state = "restarting"
    await pair.chat()
    models = (await pair.http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["org/main model", "spare"]
    metrics = (await pair.http.get("/metrics")).text
    assert 'vllm:request_success_total{finished_reason="length",model_name="spare"} 1.0' in metrics
    assert 'vllm:request_success_total{finished_reason="length",model_name="org/main model"} 0.0' in metrics


async def test_without_a_fallback_that_serves_nothing_is_hidden(pair: Pair) -> None:
    pair.main.state, pair.spare.state = "failed", "failed"
    assert (await pair.chat()).status_code == 503
    health = await pair.http.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "failed"


async def test_a_server_that_shuts_down_takes_nothing_new(pair: Pair) -> None:
    pair.main.state = "draining"
    assert (await pair.chat()).status_code == 503
    assert (await pair.http.get("/health")).status_code == 503
