"""Invites: who may join, and until when; and the line that carries one."""

from __future__ import annotations

import pytest

from pipeline_ext.invites import Attempts, InviteError, InviteLine, Invites, read_line


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def invites(clock: Clock) -> Invites:
    return Invites(clock)


def test_an_invite_is_good_once(invites: Invites) -> None:
    _, token = invites.make()
    assert invites.accepts(token, "a")
    assert invites.use(token, "a")
    assert not invites.accepts(token, "b")
    assert not invites.use(token, "b")


def test_who_lost_the_answer_may_ask_again_and_nobody_else(invites: Invites) -> None:
    _, token = invites.make(uses=2)
    assert invites.use(token, "a")
    assert invites.use(token, "a")
    assert invites.use(token, "b")
    assert not invites.use(token, "c")


def test_an_invite_ends_with_its_time(invites: Invites, clock: Clock) -> None:
    _, token = invites.make(seconds=60)
    clock.now += 59.9
    assert invites.accepts(token, "a")
    clock.now += 0.1
    assert not invites.use(token, "a")
    assert invites.open() == ()


def test_an_invite_is_taken_back_by_name_or_with_all(invites: Invites) -> None:
    first, first_token = invites.make()
    _, second_token = invites.make()
    assert invites.revoke("nobody") == 0
    assert invites.revoke(first) == 1
    assert not invites.use(first_token, "a")
    assert invites.accepts(second_token, "a")
    assert invites.revoke() == 1
    assert not invites.use(second_token, "a")


@pytest.mark.parametrize("token", [b"", b"x" * 16, b"x" * 64])
def test_a_wrong_token_is_no_invite(invites: Invites, token: bytes) -> None:
    invites.make()
    assert not invites.use(token, "a")


def test_tokens_are_not_kept(invites: Invites) -> None:
    name, token = invites.make()
    kept = repr([vars(invites), [getattr(each, field) for each in invites._open.values() for field in each.__slots__]])
    assert token.hex() not in kept
    assert repr(token) not in kept
    assert name not in token.hex()


def test_uses_that_are_left_are_told(invites: Invites) -> None:
    name, token = invites.make(seconds=60, uses=3)
    invites.use(token, "a")
    ((told),) = invites.open()
    assert (told.name, told.uses, told.seconds) == (name, 2, 60)


def test_a_line_comes_back_whole_also_when_it_was_broken_by_a_terminal() -> None:
    line = InviteLine("10.0.0.1", 7700, b"f" * 32, b"t" * 16, "0.1.0")
    text = line.text()
    assert read_line(text) == line
    assert read_line(f" {text[:30]}\n  {text[30:]} ") == line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "sw1-",
        "sw1-!!!!",
        "sw1-" + "A" * 10000,
        "sw2-lakx",
        InviteLine("10.0.0.1", 7700, b"f" * 31, b"t" * 16, "0").text(),
        InviteLine("10.0.0.1", 7700, b"f" * 32, b"t" * 15, "0").text(),
        InviteLine("10.0.0.1", 0, b"f" * 32, b"t" * 16, "0").text(),
        InviteLine("10.0.0.1", 7700, b"f" * 32, b"t" * 16, "0").text()[:-3],
    ],
)
def test_what_is_no_invite_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InviteError, match="no invite"):
        read_line(text)


def test_strangers_may_try_only_so_often(clock: Clock) -> None:
    attempts = Attempts(clock, most=3, seconds=60)
    for _ in range(3):
        assert attempts.may("a")
        attempts.failed("a")
        clock.now += 1
    assert not attempts.may("a")
    assert attempts.may("b")
    clock.now += 58
    assert attempts.may("a")
