"""DisaggregatedEngine over two engines of one answer: whole answers, each token once, with either engine away."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from backend.disaggregated_engine import SHORTEST_PROMPT, DisaggregatedEngine
from backend.errors import EngineUnavailableError
from backend.events import End, Start, Token
from backend.request import Request, Sampling
from tests.fakes.engine_client import FakeEngine

LONG = tuple(range(3, 3 + SHORTEST_PROMPT))


def request(prompt: tuple[int, ...] = LONG, tokens: int = 5, **sampling: object) -> Request:
    return Request(id="one", prompt=prompt, sampling=msgspec.structs.replace(Sampling(max_tokens=tokens), **sampling))


async def events(engine: DisaggregatedEngine, wanted: Request) -> list[Start | Token | End]:
    return [event async for event in engine.generate(wanted)]


def whole(found: list[Start | Token | End], wanted: Request) -> None:
    """One start, each token once and in order, one end, as a single engine tells them."""
    tokens = [event for event in found if isinstance(event, Token)]
    assert [token.index for token in tokens] == list(range(wanted.sampling.max_tokens))
    assert [token.token for token in tokens] == [wanted.prompt[at % len(wanted.prompt)] for at in range(len(tokens))]
    assert [type(event) for event in found if not isinstance(event, Token)] == [Start, End]
    assert isinstance(found[0], Start)
    assert found[-1] == End("one", "length")


async def test_a_long_prompt_begins_at_one_engine_and_goes_on_at_the_other() -> None:
    prefill, decode = FakeEngine(), FakeEngine()
    wanted = msgspec.structs.replace(request(), timeout=60.0)
    whole(await events(DisaggregatedEngine(prefill, decode), wanted), wanted)
    (first,), (rest,) = prefill.requests, decode.requests
    assert (first.sampling.max_tokens, first.hand_over, first.prior) == (1, True, ())
    assert (rest.sampling.max_tokens, rest.hand_over, rest.prior) == (5, False, (LONG[0],))
    assert rest.timeout is not None
    assert 0 < rest.timeout < 60.0


async def test_a_short_prompt_and_one_token_need_one_engine() -> None:
    prefill, decode = FakeEngine(), FakeEngine()
    engine = DisaggregatedEngine(prefill, decode)
    whole(await events(engine, request(LONG[:-1])), request(LONG[:-1]))
    assert (len(prefill.requests), len(decode.requests)) == (0, 1)
    whole(await events(engine, request(tokens=1)), request(tokens=1))
    assert (len(prefill.requests), len(decode.requests)) == (1, 1)
    assert not prefill.requests[0].hand_over


@pytest.mark.parametrize("state", ["starting", "restarting", "failed"])
async def test_the_decode_engine_does_it_all_while_the_other_cannot(state: str) -> None:
    prefill, decode = FakeEngine(state=state), FakeEngine()  # pyright: ignore[reportArgumentType]
    whole(await events(DisaggregatedEngine(prefill, decode), request()), request())
    assert not prefill.requests
    assert decode.requests == [request()]


async def test_an_end_at_the_first_token_is_the_end() -> None:
    prefill, decode = FakeEngine(), FakeEngine()
    found = await events(DisaggregatedEngine(prefill, decode), request(stop_tokens=(LONG[0],)))
    assert found[-1] == End("one", "stop")
    assert not decode.requests


async def test_a_decode_engine_that_has_failed_meanwhile_ends_the_answer_in_words() -> None:
    prefill, decode = FakeEngine(), FakeEngine()
    engine = DisaggregatedEngine(prefill, decode)
    found = []
    async for event in engine.generate(request()):
        found.append(event)
        decode.state, decode.error = "failed", "It broke"
    assert isinstance(found[-1], End)
    assert (found[-1].reason, "It broke" in found[-1].message) == ("error", True)
    assert sum(isinstance(event, Token) for event in found) == 1
    with pytest.raises(EngineUnavailableError):
        await events(engine, request())


async def test_leaving_early_cancels_wherever_it_runs() -> None:
    for prefill, decode in ((FakeEngine(delay=30.0), FakeEngine()), (FakeEngine(), FakeEngine(delay=30.0))):
        generated = DisaggregatedEngine(prefill, decode).generate(request())

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                async for _ in generated:
                    pass
        await generated.aclose()
        assert not prefill.running
        assert not decode.running
        assert prefill.cancelled + decode.cancelled == ["one"]


async def test_each_prompt_and_token_counts_once() -> None:
    prefill, decode = FakeEngine(), FakeEngine()
    engine = DisaggregatedEngine(prefill, decode)
    await events(engine, request())
    assert engine.statistics().generation_tokens == prefill.generated + decode.generated
    assert engine.status().restarts == 4
    assert [rank.rank for rank in engine.status().ranks] == [0, 1]
