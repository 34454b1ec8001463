"""StageMachine: what is computed, sent on and answered, under reordered, repeated, early and stale messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.hidden_states import HiddenStates
from backend.workers.worker_messages import SliceOrder, Step
from pipeline_ext.link_protocol import Keepalive, Skipped, States
from pipeline_ext.messages import Join, Joined, LinkLost, StageDone, StageFailed, StageStep
from pipeline_ext.stage_machine import (
    MOST_FRAMES,
    SKIPPED,
    Action,
    Answer,
    Finished,
    OpenLinks,
    SendFrame,
    StageMachine,
    StagePlace,
    Work,
)

SLICE = SliceOrder(0, 0, 1, 1, 1, False, 0, [1], [])


def step(epoch: int, number: int, *, slices: int = 1, until: int = 3) -> StageStep:
    return StageStep(epoch, number, Step(number, [SLICE] * slices), until)


def hidden(mark: int = 0) -> HiddenStates:
    return HiddenStates("float32", 1, 1, bytes([mark, 0, 0, 0]))


def states(epoch: int, number: int, mark: int = 0) -> States:
    return States(epoch, number, hidden(mark))


def joined(place: StagePlace, epoch: int = 0) -> StageMachine:
    machine = StageMachine(place)
    machine.join(Join(epoch, "there"))
    for forward in (False, True):
        machine.link_stands(epoch, forward)
    machine.take()
    return machine


MIDDLE = StagePlace(1, 3)


def answers(actions: list[Action]) -> list[object]:
    return [action.message for action in actions if isinstance(action, Answer)]


def work(machine: StageMachine) -> Work:
    one = machine.next_work()
    assert one is not None
    return one


def test_joined_is_answered_once_both_links_stand():
    machine = StageMachine(MIDDLE)
    machine.join(Join(4, "there"))
    assert machine.take() == [OpenLinks(4, "there")]
    machine.link_stands(4, False)
    machine.link_stands(3, True)
    assert machine.take() == []
    machine.link_stands(4, True)
    machine.link_stands(4, True)
    assert answers(machine.take()) == [Joined(4)]


@pytest.mark.parametrize("place", [StagePlace(1, 3, rank=1, ranks=2), StagePlace(0, 1)])
def test_who_has_no_links_has_joined_at_once(place: StagePlace):
    machine = StageMachine(place)
    machine.join(Join(0, "there"))
    assert machine.take() == [OpenLinks(0, ""), Answer(Joined(0))]


def test_a_step_is_computed_when_order_and_frame_are_there_and_handed_on():
    machine = joined(MIDDLE)
    machine.step(step(0, 0))
    assert machine.next_work() is None
    machine.frame(Keepalive(0))
    machine.frame(states(0, 0, 7))
    assert work(machine) == Work(0, 0, step(0, 0).step, "compute", hidden(7))
    assert machine.next_work() is None
    machine.finished(Finished(3, 0.5, 0.1, hidden=hidden(8)))
    assert machine.take() == [
        SendFrame(states(0, 0, 8)),
        Answer(StageDone(0, 0, [], 3, 0.5, 0.1)),
    ]


@given(st.permutations([("step", 0), ("step", 1), ("step", 2), ("frame", 0), ("frame", 1), ("frame", 2)]), st.data())
def test_any_order_of_messages_is_computed_in_the_order_of_numbers(order: list[tuple[str, int]], data: st.DataObject):
    machine, done = joined(MIDDLE), []
    repeated = [one for one in order for _ in range(data.draw(st.integers(1, 2)))]
    for kind, number in repeated:
        if kind == "step":
            machine.step(step(0, number))
        else:
            machine.frame(states(0, number, number))
        while (one := machine.next_work()) is not None:
            assert one.hidden == hidden(one.number)
            done.append(one.number)
            machine.finished(Finished(0, 0.0, hidden=hidden(one.number)))
    assert done == [0, 1, 2]
    sent = [action.frame for action in machine.take() if isinstance(action, SendFrame)]
    assert sent == [states(0, number, number) for number in range(3)]


def test_frames_of_an_earlier_epoch_are_dropped():
    machine = joined(MIDDLE)
    machine.frame(states(0, 0, 1))
    machine.join(Join(1, "there"))
    for forward in (False, True):
        machine.link_stands(1, forward)
    machine.frame(states(0, 0, 2))
    machine.step(step(0, 0))
    machine.step(step(1, 0))
    assert machine.next_work() is None
    machine.frame(states(1, 0, 3))
    assert work(machine).hidden == hidden(3)


def test_frames_of_a_later_epoch_are_kept_until_its_join():
    machine = joined(MIDDLE)
    machine.frame(states(2, 0, 1))
    machine.frame(states(3, 0, 2))
    machine.frame(states(2, 1, 3))
    machine.join(Join(3, "there"))
    for forward in (False, True):
        machine.link_stands(3, forward)
    machine.step(step(3, 0))
    assert work(machine).hidden == hidden(2)


def test_more_early_frames_than_can_be_in_flight_break_the_link_of_their_epoch():
    machine = joined(MIDDLE)
    for number in range(MOST_FRAMES + 1):
        machine.frame(states(1, number))
    machine.join(Join(1, "there"))
    assert [type(one) for one in answers(machine.take())] == [LinkLost]


def test_a_frame_far_ahead_breaks_the_link():
    machine = joined(MIDDLE)
    machine.frame(states(0, MOST_FRAMES))
    assert [type(one) for one in answers(machine.take())] == [LinkLost]


def test_an_earlier_join_changes_nothing():
    machine = joined(MIDDLE, 5)
    machine.join(Join(5, "elsewhere"))
    machine.join(Join(4, "elsewhere"))
    assert (machine.take(), machine.epoch) == ([], 5)


def test_a_step_that_fails_here_is_told_and_skipped_behind():
    machine = joined(MIDDLE)
    machine.step(step(0, 0))
    machine.frame(states(0, 0))
    work(machine)
    machine.finished(Finished(1, 0.0, error="out of memory"))
    assert machine.take() == [SendFrame(Skipped(0, 0)), Answer(StageFailed(0, 0, "out of memory", 1))]


@pytest.mark.parametrize(("ranks", "how"), [(1, "transfers"), (2, "blank")])
def test_a_step_that_failed_before_is_not_computed_unless_other_ranks_do(ranks: int, how: str):
    machine = joined(StagePlace(1, 3, 0, ranks))
    machine.step(step(0, 0))
    machine.frame(Skipped(0, 0))
    assert work(machine).how == how
    machine.finished(Finished(1, 0.0, hidden=hidden()))
    assert machine.take() == [SendFrame(Skipped(0, 0)), Answer(StageFailed(0, 0, SKIPPED, 1))]


def test_transfers_alone_wait_for_no_frame_and_send_none():
    machine = joined(MIDDLE)
    machine.step(step(0, 0, slices=0))
    assert work(machine).how == "transfers"
    machine.finished(Finished(0, 0.0))
    assert [type(action) for action in machine.take()] == [Answer]


@pytest.mark.parametrize(
    ("until", "how", "sends"), [(1, "transfers", False), (2, "compute", False), (3, "compute", True)]
)
def test_stages_from_until_on_sit_out(until: int, how: str, sends: bool):
    machine = joined(MIDDLE)
    machine.step(step(0, 0, until=until))
    if how == "compute":
        assert machine.next_work() is None
        machine.frame(states(0, 0))
    assert work(machine).how == how
    machine.finished(Finished(0, 0.0, hidden=hidden() if how == "compute" else None))
    assert any(isinstance(action, SendFrame) for action in machine.take()) is sends


def test_what_was_computed_for_an_epoch_that_is_over_is_not_told():
    machine = joined(MIDDLE)
    machine.step(step(0, 0))
    machine.frame(states(0, 0))
    work(machine)
    machine.join(Join(1, "there"))
    machine.finished(Finished(0, 0.0, hidden=hidden()))
    assert machine.take() == [OpenLinks(1, "there")]


def test_a_broken_link_is_told_once_and_only_of_this_epoch():
    machine = joined(MIDDLE, 2)
    machine.link_broken(1, True, "old")
    machine.link_broken(2, False, "cut")
    machine.link_broken(2, True, "cut as well")
    assert answers(machine.take()) == [LinkLost(2, False, "cut")]


def test_nothing_is_computed_before_the_links_stand():
    machine = StageMachine(StagePlace(0, 2))
    machine.join(Join(0, "there"))
    machine.step(step(0, 0))
    assert machine.next_work() is None
    machine.link_stands(0, True)
    assert machine.next_work() is not None


def test_finishing_what_was_not_handed_out_is_a_bug():
    with pytest.raises(RuntimeError, match="not handed out"):
        joined(MIDDLE).finished(Finished(0, 0.0))
