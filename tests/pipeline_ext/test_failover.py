"""Failover: each rung of the ladder, and why a machine will not do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_ext.failover import Candidate, GiveUp, Replace, Replan, Situation, StageNeed, Wait, decide, has_room

NEED = StageNeed((60, 40))


def machine(peer: str, memory: int = 200, **more: object) -> Candidate:
    return Candidate(peer, peer or "head", more.pop("health", "alive"), memory, **more)  # pyright: ignore[reportArgumentType]


def situation(*candidates: Candidate, need: StageNeed = NEED, **more: object) -> Situation:
    plain: dict[str, object] = {"now": 10.0, "since": 9.0, "home": "gone", "replan": False, "leaving": False}
    return Situation(stage=1, need=need, candidates=candidates, most_failures=2, wait=30.0, **(plain | more))  # pyright: ignore[reportArgumentType]


def test_a_spare_goes_before_one_with_a_stage_and_before_the_head():
    decision = decide(situation(machine("", 999), machine("busy", 999, stages=(0,)), machine("spare", 100)))
    assert isinstance(decision, Replace)
    assert (decision.stage, decision.peer) == (1, "spare")


def test_another_spare_goes_before_the_machine_that_lost_the_stage():
    here, other = machine("gone", latency=0.0), machine("spare", latency=0.2)
    assert isinstance(decision := decide(situation(here, other)), Replace)
    assert decision.peer == "spare"
    assert isinstance(decision := decide(situation(here, machine("", 999))), Replace)
    assert decision.peer == "gone"


@pytest.mark.parametrize("second", [machine("busy", 100, stages=(0,)), machine("", 100)], ids=["peer", "head"])
def test_without_a_spare_a_second_worker_goes_where_there_is_room(second: Candidate):
    assert isinstance(decision := decide(situation(machine("small", 99), second, replan=True)), Replace)
    assert decision.peer == second.peer


@pytest.mark.parametrize(
    "unusable",
    [
        machine("p", 99),
        machine("p", health="silent"),
        machine("p", health="lost"),
        machine("p", health="leaving"),
        machine("p", failures=2),
        machine("p", refused=True),
    ],
    ids=["small", "silent", "lost", "leaving", "failed", "refused"],
)
def test_where_nobody_will_do_it_is_planned_anew_or_waited_or_given_up(unusable: Candidate):
    assert isinstance(decide(situation(unusable, replan=True)), Replan)
    assert isinstance(waits := decide(situation(unusable)), Wait)
    assert 10.0 < waits.until <= 11.0
    gave = decide(situation(unusable, since=-21.0))
    assert isinstance(gave, GiveUp)
    assert "p " in gave.reason


def test_a_machine_that_has_just_failed_is_waited_for_and_not_planned_around():
    decision = decide(situation(machine("p", failures=1, retry_at=10.4), replan=True))
    assert isinstance(decision, Wait)
    assert decision.until == 10.4


def test_a_stage_whose_machine_is_leaving_serves_on_until_there_is_room():
    assert isinstance(decide(situation(machine("p", 5), leaving=True, since=-1000.0)), Wait)
    assert isinstance(decide(situation(machine("p"), leaving=True)), Replace)


@pytest.mark.parametrize(
    ("gpus", "fits"), [((60, 40), True), ((40, 60), True), ((100,), False), ((59, 59), False), ((60, 39, 39), False)]
)
def test_each_rank_takes_a_gpu_of_its_own(gpus: tuple[int, ...], fits: bool):
    assert has_room(StageNeed((40, 60), on_gpu=True), machine("p", 0, gpus=gpus)) is fits


candidates = st.lists(
    st.builds(
        Candidate,
        st.sampled_from(["", "a", "b", "c"]),
        st.just("name"),
        st.sampled_from(["alive", "silent", "lost", "leaving"]),
        st.integers(0, 200),
        stages=st.sampled_from([(), (0,), (0, 2)]),
        failures=st.integers(0, 3),
        retry_at=st.floats(0.0, 20.0),
        refused=st.booleans(),
    ),
    max_size=4,
).map(tuple)


@given(candidates, st.booleans(), st.floats(-100.0, 10.0), st.booleans())
def test_a_stage_only_goes_where_it_can_and_nothing_waits_forever(
    known: tuple[Candidate, ...], replan: bool, since: float, leaving: bool
):
    decision = decide(situation(*known, replan=replan, since=since, leaving=leaving))
    assert decision.reason
    match decision:
        case Replace(peer=peer):
            assert any(one.peer == peer and one.health == "alive" and has_room(NEED, one) for one in known)
        case Wait(until=until):
            assert 10.0 <= until <= 11.0
            assert leaving or since + 30.0 > 10.0
        case GiveUp():
            assert not replan or any(one.failures < 2 for one in known)
            assert not leaving
