"""The server's record of a request: each index once, none skipped, and a replay that continues where it stopped."""

from __future__ import annotations

import asyncio

import pytest

from backend.events import End, Start, Token
from backend.request import Request, Sampling
from backend.running_request import LostTokenError, RunningRequest


def running(max_tokens: int = 4, timeout: float | None = None, prior: tuple[int, ...] = ()) -> RunningRequest:
    sampling = Sampling(max_tokens=max_tokens, stop_tokens=(9,))
    return RunningRequest(Request(id="a", prompt=(1,), prior=prior, sampling=sampling, timeout=timeout))


async def test_a_token_is_delivered_once_and_a_gap_is_an_error() -> None:
    one = running()
    assert one.deliver(Token("a", 0, 5))
    assert not one.deliver(Token("a", 0, 5))
    with pytest.raises(LostTokenError):
        one.deliver(Token("a", 2, 7))
    one.end(End("a", "stop"))
    assert [await one.next_event() for _ in range(2)] == [Token("a", 0, 5), End("a", "stop")]


async def test_a_replay_carries_the_tokens_so_far_and_the_time_left() -> None:
    one = running(timeout=10.0, prior=(3,))
    one.deliver(Token("a", 1, 5))
    await asyncio.sleep(0.02)
    replay = one.replay()
    assert replay.prior == (3, 5)
    assert replay.timeout is not None
    assert 5.0 < replay.timeout < 9.99
    assert running().replay().timeout is None


async def test_only_the_first_start_is_told_and_never_more_than_the_prompt() -> None:
    one = running()
    one.started(Start("a", 7))
    one.deliver(Token("a", 0, 5))
    one.started(Start("a", 1))
    one.end(End("a", "stop"))
    assert [await one.next_event() for _ in range(3)] == [Start("a", 1), Token("a", 0, 5), End("a", "stop")]


def test_only_what_ran_without_a_token_is_suspect() -> None:
    one = running()
    one.engine_died()
    assert one.suspicions == 0
    for expected in (1, 2):
        one.sent = True
        one.engine_died()
        assert one.suspicions == expected
    one.sent = True
    one.deliver(Token("a", 0, 5))
    one.engine_died()
    assert (one.suspicions, one.sent) == (0, False)


@pytest.mark.parametrize(("tokens", "reason"), [((5,), None), ((5, 6, 7, 8), "length"), ((5, 9), "stop"), ((), None)])
def test_a_complete_answer_whose_end_was_lost_is_not_computed_again(tokens: tuple[int, ...], reason: str) -> None:
    one = running()
    for index, token in enumerate(tokens):
        one.deliver(Token("a", index, token))
    assert one.finished() == reason
