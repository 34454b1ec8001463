"""PipelineExecutor over PipelineMachine: starting, breaking, mending, leaving, giving up, against scripted workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backend.batch import Batch, PageSpan, Sampled, SampleTask, Slice
from backend.executor import DeviceLostError, PipelineBrokenError
from backend.hardware.cpu import Cpu
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory
from backend.request import Sampling
from backend.workers.worker_messages import Choice
from kvcache.transfer import Place, Tier, Transfer, TransferDone
from pipeline_ext.cluster import SpawnError, SpawnOrder
from pipeline_ext.crew_starter import Door
from pipeline_ext.messages import (
    FromStage,
    Join,
    Joined,
    LinkLost,
    LoadStage,
    Poll,
    Polled,
    Pulse,
    Refused,
    StageDone,
    StageFailed,
    StageLoaded,
    StageStep,
    ToStage,
    Warm,
    WarmUp,
    to_stage_decoder,
)
from pipeline_ext.peer import Health, Peer
from pipeline_ext.pipeline import PipelineMachine
from pipeline_ext.pipeline_executor import PipelineExecutor, StageRefusedError
from pipeline_ext.pipeline_limits import PipelineLimits
from pipeline_ext.simulator.simulated_loads import SimulatedLoads
from pipeline_ext.transport import Arrived, Event, Gone, Heard

BEAT = 0.5
ROOM = 10_000


class Workers:
    """A Transport and a Cluster whose workers obey at once, but for what a test says."""

    def __init__(self, peers: str) -> None:
        self.time = 0.0
        self.events: list[Event] = []
        self.alive: dict[str, str] = {}
        self.mute: set[str] = set()
        self.health: dict[str, Health] = dict.fromkeys(("", *peers), "alive")
        self.room = dict.fromkeys(self.health, ROOM)
        self.answer: Callable[[str, ToStage], FromStage | None] = lambda worker, message: None
        self.refuses = ""
        self.unreachable: set[str] = set()
        self.joins: list[tuple[str, Join]] = []
        self.steps: list[tuple[str, StageStep]] = []
        self.killed: list[str] = []
        self.left: list[str] = []
        self._beaten = 0.0

    # Transport

    def now(self) -> float:
        return self.time

    def poll(self, patience: float) -> list[Event]:
        if not self.events:
            self.time += max(patience, 0.001)
        while self.time >= self._beaten + BEAT:
            self._beaten += BEAT
            self.events += [Heard(worker, Pulse(0.0)) for worker in self.alive if worker not in self.mute]
        events, self.events = self.events, []
        return events

    def send(self, worker: str, message: ToStage) -> None:
        if isinstance(message, Join):
            self.joins.append((worker, message))
        if isinstance(message, StageStep):
            self.steps.append((worker, message))
        if worker not in self.alive or worker in self.mute:
            return
        reply = self.answer(worker, message) or self._obey(worker, message)
        if reply is not None and worker in self.alive:
            self.events.append(Heard(worker, reply))

    def send_encoded(self, worker: str, body: bytes) -> None:
        self.send(worker, to_stage_decoder.decode(body))

    def drop(self, worker: str) -> None:
        self.alive.pop(worker, None)
        self.events = [event for event in self.events if event.worker != worker]

    def _obey(self, worker: str, message: ToStage) -> FromStage | None:
        match message:
            case LoadStage() if self.refuses and self.alive[worker] == self.refuses:
                return Refused("model_not_found", 1, "It has not the model.", "", "")
            case LoadStage():
                return StageLoaded(worker, "cuda:0", 5, ())
            case WarmUp():
                return Warm()
            case Join(epoch=epoch):
                return Joined(epoch)
            case StageStep(epoch=epoch, number=number, step=step):
                results: list[Choice | None] = [(number, None, ()) if one.samples else None for one in step.slices]
                return StageDone(epoch, number, results, number + 1, 0.01, 0.5)
            case Poll():
                return Polled(self.joins[-1][1].epoch, (TransferDone(7, True, 10, 0.1),))
        return None

    # Cluster

    @property
    def address(self) -> str:
        return ""

    def peers(self) -> tuple[Peer, ...]:
        return tuple(
            Peer(name, name, name, Machine(Cpu("", 1, 1), Memory(self.room[name], self.room[name])), None, health, "0")
            for name, health in self.health.items()
        )

    def spawn(self, peer: str, order: SpawnOrder) -> None:
        if peer in self.unreachable:
            raise SpawnError("no route")
        for worker in order.workers:
            self.alive[worker] = peer
            self.events.append(Arrived(worker, 100 + len(self.alive)))

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        self.killed += workers

    def released(self, peer: str) -> None:
        self.left.append(peer)

    def close(self) -> None:
        self.alive.clear()

    # What a test does

    def of(self, peer: str) -> list[str]:
        return [worker for worker, where in self.alive.items() if where == peer]

    def die(self, peer: str) -> None:
        for worker in self.of(peer):
            del self.alive[worker]
            self.events.append(Gone(worker, "killed"))


class Loads(SimulatedLoads):
    """With a Plan anew only where a test says so."""

    replan = False

    def can_replan(self, peers: tuple[Peer, ...]) -> bool:
        return self.replan


def pipeline(peers: str = "abs", ranks: int = 1) -> tuple[Workers, PipelineExecutor, Loads]:
    workers = Workers(peers)
    workers.room[""] = 0
    loads = Loads([("a", 0, 2), ("b", 2, 4)], ranks, 16, 4)
    machine = PipelineMachine(loads, workers, workers, Door(lambda peer: "door", b"secret"), PipelineLimits())
    return workers, PipelineExecutor(machine, workers), loads


def started(peers: str = "abs", ranks: int = 1) -> tuple[Workers, PipelineExecutor, Loads]:
    workers, executor, loads = pipeline(peers, ranks)
    executor.start()
    return workers, executor, loads


def batch(step: int = 0, transfers: tuple[Transfer, ...] = (), until: int | None = None) -> Batch:
    task = None if until is not None else SampleTask(Sampling(), [1, 2], [])
    part = Slice(0, 0, [1, 2], 2, 2, (PageSpan(0, [3]),), task)
    return Batch(step, (part,), transfers, until)


def broken(executor: PipelineExecutor) -> tuple[int, ...]:
    with pytest.raises(PipelineBrokenError) as caught:
        executor.finish()
    assert executor.in_flight == 0
    return caught.value.lost


def test_it_starts_and_batches_finish_in_order():
    workers, executor, _ = started(ranks=2)
    assert [(worker, join.forward) for worker, join in workers.joins] == [
        ("stage-0-1-0", "stage-1-2-0"), ("stage-0-1-1", ""), ("stage-1-2-0", ""), ("stage-1-2-1", ""),
    ]  # fmt: skip
    for number in range(3):
        executor.begin(batch(number))
    assert executor.in_flight == 3
    assert [executor.finish() for _ in range(3)] == [[Sampled(number)] for number in range(3)]
    standing = executor.standing()
    assert standing is not None
    assert [(rank.rank, rank.stage, rank.peer, rank.state) for rank in standing.ranks] == [
        (0, 0, "a", "ready"), (1, 0, "a", "ready"), (2, 1, "b", "ready"), (3, 1, "b", "ready"),
    ]  # fmt: skip
    assert not standing.mending
    assert executor.standing() is None


def test_a_machine_that_refuses_at_the_start_says_why():
    workers, executor, _ = pipeline()
    workers.refuses = "b"
    with pytest.raises(StageRefusedError, match="It has not the model"):
        executor.start()


def test_a_worker_that_dies_at_the_start_ends_it():
    workers, executor, _ = pipeline()
    workers.answer = lambda worker, message: workers.die("b") if isinstance(message, WarmUp) else None
    with pytest.raises(DeviceLostError, match="killed"):
        executor.start()


def test_a_lost_stage_is_replaced_by_the_spare_and_all_in_flight_is_void():
    workers, executor, _ = started()
    workers.answer = lambda worker, message: Pulse(0.1) if isinstance(message, StageStep) else None
    executor.begin(batch())
    executor.begin(batch(1))
    workers.die("b")
    assert executor.finish(0.0) is None
    standing = executor.standing()
    assert standing is not None
    assert standing.mending
    assert "goes to s" in standing.trouble
    assert broken(executor) == (1,)
    workers.answer = lambda worker, message: None
    executor.begin(batch(2))
    assert executor.finish() == [Sampled(0)]
    assert {join.epoch for _, join in workers.joins} == {0, 1}
    assert [workers.alive[worker] for worker in sorted(workers.alive)] == ["a", "s"]


def test_batches_begun_while_it_is_mended_are_void_too():
    workers, executor, _ = started()
    workers.die("a")
    executor.transfers_done()
    executor.begin(batch())
    assert broken(executor) == (0,)


def test_a_silent_worker_is_lost_but_not_because_we_stood_still():
    workers, executor, _ = started()
    workers.time += 3600.0
    workers._beaten = workers.time
    executor.begin(batch())
    assert executor.finish() == [Sampled(0)]
    workers.mute.update(workers.of("b"))
    executor.begin(batch(1))
    began = workers.time
    assert broken(executor) == (1,)
    assert 1.5 < workers.time - began < 6.0
    assert set(workers.killed) == {"stage-1-2-0"}


def test_answers_of_another_epoch_count_for_nothing():
    workers, executor, _ = started()
    workers.answer = lambda worker, message: Pulse(0.1) if isinstance(message, StageStep) else None
    executor.begin(batch())
    workers.die("b")
    broken(executor)
    executor.begin(batch(1))
    workers.events += [Heard(worker, StageDone(0, 0, [(55, None, ())], 1, 0.1)) for worker in workers.alive]
    assert executor.finish(1.0) is None
    workers.events += [Heard(worker, StageDone(1, 0, [(66, None, ())], 1, 0.1)) for worker in workers.alive]
    assert executor.finish(1.0) == [Sampled(66)]


def test_a_worker_that_answers_what_it_was_not_asked_is_replaced():
    workers, executor, _ = started()
    workers.events.append(Heard("stage-1-2-0", StageDone(0, 4, [], 1, 0.1)))
    executor.transfers_done()
    executor.begin(batch())
    assert broken(executor) == (1,)


def test_a_failed_batch_raises_the_words_of_where_it_failed():
    workers, executor, _ = started()

    def fail(worker: str, message: ToStage) -> FromStage | None:
        if not isinstance(message, StageStep):
            return None
        text = "out of memory" if worker.startswith("stage-0") else "the batch failed on a stage before"
        return StageFailed(message.epoch, message.number, text, 1)

    workers.answer = fail
    executor.begin(batch())
    with pytest.raises(RuntimeError, match="out of memory"):
        executor.finish()
    assert executor.in_flight == 0


def test_ranks_that_are_out_of_step_are_replaced():
    workers, executor, _ = started(ranks=2)
    workers.answer = lambda worker, message: (
        StageFailed(message.epoch, message.number, "bad", int(worker[-1]) if worker.startswith("stage-1") else 0)
        if isinstance(message, StageStep)
        else None
    )
    executor.begin(batch())
    assert broken(executor) == (1,)


def test_a_broken_link_is_joined_anew_and_given_up_with_a_peer_if_it_does_not_hold():
    workers, executor, _ = started()
    workers.answer = lambda worker, message: Pulse(0.1) if isinstance(message, StageStep) else None
    lost: list[tuple[int, ...]] = []
    while not lost or not lost[-1]:
        executor.begin(batch())
        workers.events.append(Heard("stage-0-1-0", LinkLost(workers.joins[-1][1].epoch, True, "cut")))
        lost.append(broken(executor))
        assert len(lost) < 10
    assert lost == [(), (), (), (1,)]
    assert workers.of("s")


def test_stages_of_several_ranks_do_not_outlive_a_break_with_batches_in_flight():
    """One of them may wait in a collective that the others never come to, and take the next batch's for it."""
    workers, executor, _ = started(ranks=2)
    first = {worker for worker, _ in workers.joins}
    workers.events.append(Heard("stage-0-1-0", LinkLost(0, True, "cut")))
    for _ in range(4):
        workers.time += 0.5
        executor.transfers_done()
    assert first <= set(workers.alive)
    workers.answer = lambda worker, message: Pulse(0.1) if isinstance(message, StageStep) else None
    executor.begin(batch())
    workers.events.append(Heard("stage-0-1-0", LinkLost(workers.joins[-1][1].epoch, True, "cut")))
    assert broken(executor) == (0, 1)
    assert not first & set(workers.alive)


def test_a_link_that_cannot_be_made_is_given_up_too():
    workers, executor, _ = started()
    workers.answer = lambda worker, message: (
        Pulse(0.0) if isinstance(message, Join) and message.epoch in range(1, 4) else None
    )
    workers.events.append(Heard("stage-1-2-0", LinkLost(0, False, "cut")))
    for _ in range(2):
        workers.time += 0.5
        executor.transfers_done()
    executor.begin(batch())
    assert broken(executor) == (1,)
    assert workers.time < 60.0


def test_a_link_that_breaks_while_nothing_is_in_flight_is_nobodys_business():
    workers, executor, _ = started()
    workers.events.append(Heard("stage-0-1-0", LinkLost(0, True, "cut")))
    for _ in range(4):
        workers.time += 0.5
        executor.transfers_done()
    executor.begin(batch())
    assert executor.finish() == [Sampled(0)]
    assert workers.steps[-1][1].epoch == 1


def test_a_machine_that_leaves_serves_until_its_successor_is_ready():
    workers, executor, _ = started()
    workers.answer = lambda worker, message: Pulse(0.1) if isinstance(message, StageStep) else None
    executor.begin(batch())
    workers.health["b"] = "leaving"
    assert executor.finish(3.0) is None
    assert workers.of("s")
    executor.begin(batch(1))
    for worker, message in workers.steps:
        workers.events.append(Heard(worker, StageDone(0, message.number, [(9, None, ())], 1, 0.1)))
    workers.answer = lambda worker, message: None
    assert executor.finish() == [Sampled(9)]
    assert broken(executor) == (1,)
    executor.transfers_done(1.5)
    executor.transfers_done(1.5)
    assert workers.left == ["b"]
    assert not workers.of("b")


def test_where_no_machine_has_room_it_ends_for_another_plan():
    workers, executor, loads = started("ab")
    loads.replan = True
    workers.room["a"] = 2000
    workers.health["b"] = "lost"
    executor.begin(batch())
    workers.die("b")
    with pytest.raises(DeviceLostError, match="planned anew"):
        executor.finish()


def test_without_any_machine_it_waits_for_one_and_then_gives_up():
    workers, executor, _ = started("ab")
    workers.health["b"] = "lost"
    workers.room["a"] = 2000
    workers.die("b")
    executor.transfers_done()
    executor.begin(batch())
    assert executor.finish(60.0) is None
    with pytest.raises(DeviceLostError, match="b is lost"):
        executor.finish()
    assert workers.time < 200.0


def test_a_machine_that_comes_back_in_time_takes_the_stage():
    workers, executor, _ = started("ab")
    workers.health["b"] = "lost"
    workers.room["a"] = 2000
    workers.die("b")
    executor.transfers_done()
    executor.begin(batch())
    assert executor.finish(30.0) is None
    workers.health["b"] = "alive"
    assert broken(executor) == (1,)


def test_a_replacement_that_refuses_or_cannot_be_started_leads_to_the_next_one():
    workers, executor, _ = started("abst")
    workers.refuses, workers.unreachable = "s", {"t"}
    workers.die("b")
    workers.health["b"] = "lost"
    executor.transfers_done()
    executor.begin(batch())
    assert broken(executor) == (1,)
    assert len(workers.of("a")) == 2


def test_what_breaks_again_and_again_ends():
    workers, executor, _ = started()
    workers.answer = lambda worker, message: (
        workers.die(workers.alive[worker]) if isinstance(message, StageStep) else None
    )
    for _ in range(PipelineLimits().breaks):
        executor.begin(batch())
        assert broken(executor)
    executor.begin(batch())
    with pytest.raises(DeviceLostError, match="without a batch between"):
        executor.finish()


def test_transfers_are_over_when_all_workers_say_so():
    _, executor, _ = started()
    executor.begin(batch(0, (Transfer(7, b"k", Place(Tier.DEVICE, 1), Place(Tier.HOST, 0)),)))
    assert executor.finish() is not None
    assert executor.transfers_done() == []
    assert executor.transfers_done(0.5) == [TransferDone(7, True, 20, 0.1)]


def test_a_batch_until_a_stage_has_no_results():
    workers, executor, _ = started()
    executor.begin(batch(until=1))
    assert executor.finish() == [None]
    assert workers.steps[-1][1].until == 1
