"""Membership: silence, loss, leaving, coming back, and messages that are stale."""

from __future__ import annotations

import pytest

from pipeline_ext.membership import Membership


def pass_time(members: Membership, seconds: float) -> list[str]:
    lost: list[str] = []
    for _ in range(round(seconds / 0.5)):
        lost += members.passed(0.5)
    return lost


def test_a_machine_is_alive_then_silent_then_lost():
    members = Membership()
    assert members.health("p") is None
    assert members.joined("p", 1)
    assert members.health("p") == "alive"
    assert pass_time(members, 3.5) == []
    assert members.health("p") == "silent"
    assert members.heard("p", 1)
    assert members.health("p") == "alive"
    assert pass_time(members, 30.0) == ["p"]
    assert members.health("p") == "lost"


def test_who_was_given_up_has_to_join_again_as_a_later_one():
    members = Membership()
    members.joined("p", 1)
    pass_time(members, 11.0)
    assert not members.heard("p", 1)
    assert not members.joined("p", 1)
    assert members.joined("p", 2)
    assert members.health("p") == "alive"


def test_what_is_said_of_an_earlier_incarnation_changes_nothing():
    members = Membership()
    members.joined("p", 1)
    members.joined("p", 3)
    pass_time(members, 3.5)
    assert not members.heard("p", 1)
    assert not members.joined("p", 2)
    members.gone("p", 1)
    assert members.health("p") == "silent"
    members.heard("p", 3)
    members.gone("p", 2)
    assert (members.health("p"), members.incarnation("p")) == ("alive", 3)


def test_a_closed_line_makes_it_silent_at_once():
    members = Membership()
    members.joined("p", 1)
    members.gone("p", 1)
    assert members.health("p") == "silent"


def test_a_machine_that_leaves_stays_until_it_is_removed():
    members = Membership()
    assert not members.leave("p")
    members.joined("p", 1)
    assert members.leave("p")
    assert members.health("p") == "leaving"
    assert members.remove("p")
    assert not members.remove("p")
    assert not members.heard("p", 1)
    assert not members.joined("p", 1)
    assert members.joined("p", 2)
    assert members.members == ("p",)


@pytest.mark.parametrize("elapsed", [5.0, 3600.0])
def test_a_hub_that_stood_still_blames_nobody(elapsed: float):
    members = Membership()
    members.joined("p", 1)
    assert members.passed(elapsed) == []
    assert members.health("p") == "alive"
