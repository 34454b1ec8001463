"""The client against a fake of our server: what it reads, what it cleans, and how failures are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from app.client import (
    AnswerClock,
    ChatMessage,
    Delta,
    Finished,
    SamplingChoice,
    ServerAnswerError,
    ServerUnreachableError,
    ShardwiseClient,
)
from backend.measured_rank import MeasuredRank
from backend.planner.plan import MemoryTerm
from tests.fakes.fake_server import FakeServer, serving
from tests.fakes.plans import plan

HELLO = (ChatMessage("user", "hello"),)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving(FakeServer()) as running:
        yield running


async def answer(client: ShardwiseClient, sampling: SamplingChoice | None = None) -> tuple[str, Finished]:
    text, last = "", None
    async for item in client.chat("fake/model", HELLO, sampling):
        if isinstance(item, Delta):
            text += item.text
        else:
            last = item
    assert last is not None
    return text, last


async def test_an_answer_streams_with_its_figures(fake: FakeServer) -> None:
    fake.delay = 0.005
    client = ShardwiseClient(fake.url + "/v1")
    text, last = await answer(client, SamplingChoice(temperature=0.5, max_tokens=9))
    await client.aclose()
    assert text == "Hello from the fake."
    assert last.reason == "stop"
    assert (last.statistics.prompt_tokens, last.statistics.completion_tokens) == (11, 4)
    assert last.statistics.time_to_first_token is not None
    assert last.statistics.time_to_first_token >= 0.005
    assert last.statistics.tokens_per_second is not None
    assert 10 < last.statistics.tokens_per_second < 600
    sent = fake.requests[0]
    assert sent["messages"] == [{"role": "user", "content": "hello"}]
    assert (sent["temperature"], sent["max_completion_tokens"]) == (0.5, 9)
    assert sent["stream_options"] == {"include_usage": True}
    assert "top_p" not in sent


async def test_controls_are_cleaned_also_across_chunks(fake: FakeServer) -> None:
    fake.pieces = ["a\x1b", "[31", "mb\u202e", "c\u2028d", "\x1b]0;t", "itle\x07e"]
    client = ShardwiseClient(fake.url)
    text, _ = await answer(client)
    await client.aclose()
    assert text == "abc\nde"


async def test_health_and_models(fake: FakeServer) -> None:
    fake.status = "starting"
    fake.stages = [{"stage": "read", "seconds": 0.5, "done": 3, "total": 9, "finished": False}]
    client = ShardwiseClient(fake.url)
    health = await client.health()
    models = await client.models()
    await client.aclose()
    assert not health.ready
    assert health.engines[0].stages[0].done == 3
    assert [(model.id, model.context) for model in models] == [("fake/model", 4096)]


async def test_closing_the_iterator_cancels_on_the_server(fake: FakeServer) -> None:
    fake.hold_after = 1
    client = ShardwiseClient(fake.url)
    stream = client.chat("fake/model", HELLO)
    first = await anext(stream)
    assert first == Delta("Hello")
    await stream.aclose()  # type: ignore[attr-defined]
    await client.aclose()
    assert fake.cancelled.wait(5)


async def test_a_broken_stream_is_told_after_what_came(fake: FakeServer) -> None:
    fake.break_after = 2
    client = ShardwiseClient(fake.url)
    stream = client.chat("fake/model", HELLO)
    assert [await anext(stream), await anext(stream)] == [Delta("Hello"), Delta(" from")]
    with pytest.raises(ServerUnreachableError, match="broke off"):
        await anext(stream)
    await client.aclose()


async def test_a_refusal_has_the_servers_words(fake: FakeServer) -> None:
    fake.refuse = "The prompt is too long\n5000 tokens, 4096 positions.\nShorten\x1b[1m it."
    client = ShardwiseClient(fake.url)
    with pytest.raises(ServerAnswerError) as error:
        await answer(client)
    await client.aclose()
    assert (error.value.what, error.value.why) == ("The prompt is too long", "5000 tokens, 4096 positions.")
    assert error.value.hint == "Shorten it."


async def test_a_key_is_asked_for_and_sent(fake: FakeServer) -> None:
    fake.key = "secret"
    without, having = ShardwiseClient(fake.url), ShardwiseClient(fake.url, "secret")
    with pytest.raises(ServerAnswerError, match="API key"):
        await without.models()
    assert len(await having.models()) == 1
    await without.aclose()
    await having.aclose()


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://host:port"])
def test_a_bad_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ServerUnreachableError, match="address"):
        ShardwiseClient(url)


async def test_nobody_answering_is_explained() -> None:
    client = ShardwiseClient("http://127.0.0.1:9")
    with pytest.raises(ServerUnreachableError, match="No server answers at http://127") as error:
        await client.health()
    await client.aclose()
    assert "shardwise serve" in error.value.hint


def test_the_clock_without_a_piece_knows_nothing() -> None:
    assert AnswerClock().statistics().time_to_first_token is None


async def test_plans_come_clean_and_a_starting_engine_says_so(fake: FakeServer) -> None:
    client = ShardwiseClient(fake.url)
    with pytest.raises(ServerAnswerError, match="The engine is starting"):
        await client.plan()
    made = plan(reasons=("because\x1b[31m of this",))
    rank = MeasuredRank(0, "cpu", (MemoryTerm("weights", 5),), 6)
    fake.plan = {"model": "fake", "plan": to_builtins(made), "measured": [to_builtins(rank)]}
    (engine,) = await client.plan()
    assert engine.measured == (rank,)
    assert engine.plan == replace(made, reasons=("because of this",))
    fake.plan = {"model": "fake", "plan": {"pages": "many"}, "measured": []}
    with pytest.raises(ServerAnswerError, match="not a plan"):
        await client.plan()
    fake.key = "secret"
    with pytest.raises(ServerAnswerError, match="API key"):
        await client.plan()
    await client.aclose()
