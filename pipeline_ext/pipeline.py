"""PipelineMachine: the engine's side of all stages: who serves which, the epoch, and mending what breaks.

    start ─► mending ──every stage has a ready crew──► joining ──all Joined──► standing
                ▲                                         │                      │  │
                └────── a worker lost, a link given up ───┴──────────────────────┘  │ a link broke, a machine left
                                                          ▲                         │ and its successor is ready
                                                          └─────────────────────────┘

It runs in `turn`, over the transport's clock; batches are `flights`'. Each wait has a deadline, each retry a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from backend.batch import Batch
from backend.measured_rank import MeasuredRank
from backend.standing import Standing
from backend.workers.worker_messages import Step
from pipeline_ext.cluster import Cluster
from pipeline_ext.crew_starter import CrewStarter, Door
from pipeline_ext.failover import Decision, GiveUp, Replace, Replan, Wait, decide
from pipeline_ext.flights import Flight, Flights, ProtocolError
from pipeline_ext.link_troubles import LinkTroubles
from pipeline_ext.messages import (
    Join,
    Joined,
    LinkLost,
    Measure,
    Measured,
    Poll,
    Polled,
    Refused,
    StageDone,
    StageFailed,
    StageStep,
    ToStage,
    encoder,
)
from pipeline_ext.pipeline_limits import PipelineLimits
from pipeline_ext.stage_crew import StageCrew
from pipeline_ext.stage_loads import StageLoads
from pipeline_ext.stage_slot import StageSlot, situation_of, standing_of
from pipeline_ext.transport import Arrived, Event, Gone, Heard, Transport


@dataclass(frozen=True, slots=True)
class Ended:
    """Why this pipeline cannot be mended. `replan`: another Plan may do. `refused`: a worker's words at the start."""

    reason: str
    replan: bool
    refused: Refused | None = None


class PipelineMachine:
    """Used from one thread, the engine's. Owns the workers that it has spawned, until `close`."""

    def __init__(
        self,
        loads: StageLoads,
        transport: Transport,
        cluster: Cluster,
        door: Door,
        limits: PipelineLimits,
    ) -> None:
        self._loads, self._transport, self._cluster = loads, transport, cluster
        self._limits = limits
        self._slots = [StageSlot(stage, loads.home(stage)) for stage in range(len(loads))]
        self._last = transport.now()
        self._time = 0.0
        self._quiet = 0.0
        self._broke = float("-inf")
        self._started = self._standing = False
        self._joining_until: float | None = None
        self._joined: set[str] = set()
        self._links = LinkTroubles(limits)
        self._breaks = 0
        self._starter = CrewStarter(loads, cluster, door, limits)
        self._released: set[str] = set()
        self._measured: dict[str, MeasuredRank] = {}
        self._emptied: set[int] = set()
        self.epoch = -1
        self.flights = Flights([])
        self.void = False
        self.ended: Ended | None = None

    # What the executor asks.

    @property
    def standing(self) -> bool:
        """Whether batches can begin."""
        return self._standing and not self.draining and self.ended is None

    @property
    def draining(self) -> bool:
        """Whether batches in flight shall finish and none begin, because a stage is about to move."""
        return self._standing and any(slot.successor is not None and slot.successor.ready for slot in self._slots)

    def take_void(self) -> tuple[int, ...]:
        """What was in flight before the pipeline was joined anew is void; the stages whose pages are empty since."""
        emptied, self._emptied, self.void = tuple(sorted(self._emptied)), set(), False
        return emptied

    @property
    def workers(self) -> list[str]:
        """All that serve, stage after stage, rank after rank."""
        return [worker for slot in self._slots if slot.crew is not None for worker in slot.crew.workers]

    @property
    def crews(self) -> tuple[StageCrew | None, ...]:
        """Who serves each stage; None where it is lost."""
        return tuple(slot.crew for slot in self._slots)

    @property
    def loading(self) -> list[StageCrew]:
        """Those that are getting ready."""
        return [slot.successor for slot in self._slots if slot.successor is not None]

    def begin(self, step: Step, batch: Batch) -> None:
        """Sends a batch to all workers. Only while it stands."""
        samples = bool(batch.slices) and batch.until is None
        if not len(self.flights):
            self._quiet = 0.0
        number = self.flights.begin(
            len(batch.slices), samples, batch.token_count, batch.transfers, self._transport.now()
        )
        until = len(self._slots) if batch.until is None else batch.until
        self._send_all(StageStep(self.epoch, number, step, until))

    def poll_transfers(self, patience: float) -> None:
        """Asks all workers for transfers that are over, unless that is under way. Only while it stands."""
        if not self.flights.polling:
            self.flights.poll()
            self._send_all(Poll(patience))

    def measure(self) -> None:
        """Asks all workers for their memory."""
        self._measured.clear()
        self._send_all(Measure())

    def measured(self) -> tuple[MeasuredRank, ...] | None:
        """What they answered, by rank; None until all have."""
        if not all(worker in self._measured for worker in self.workers):
            return None
        return tuple(self._measured[worker] for worker in self.workers)

    def report(self) -> Standing:
        """All ranks and what people should know."""
        return standing_of(self._slots, self._loads)

    # What moves it.

    def turn(self, patience: float) -> None:
        """Takes in what has happened, waiting up to so long for a first thing, and does what follows of it."""
        for event in self._transport.poll(patience):
            self._take_in(event)
        elapsed = self._pass()
        self._watch(self._time, elapsed)
        if self.ended is None:
            self._go_on(self._time)

    def _pass(self) -> float:
        """Lets our own time go on: a turn that comes late means that this process stood still itself, so that nobody
        is to blame, and at most two ticks count."""
        now = self._transport.now()
        elapsed, self._last = now - self._last, now
        counted = min(elapsed, 2 * self._limits.signs.tick)
        self._time += counted
        self._quiet += counted
        return elapsed

    def close(self) -> None:
        """Kills all workers; no call follows."""
        for slot in self._slots:
            for crew in (slot.crew, slot.successor):
                if crew is not None:
                    self._dismiss(crew)
        self._cluster.close()

    def _take_in(self, event: Event) -> None:
        slot, crew = self._find(event.worker)
        if slot is None or crew is None:
            return self._transport.drop(event.worker)
        now = self._time
        match event:
            case Arrived(worker=worker, pid=pid):
                crew.arrived(worker, pid, now, self._transport.send)
            case Gone(cause=cause):
                crew.lose(f"is lost: {cause}")
            case Heard(worker=worker, message=message):
                try:
                    self._hear(slot, crew, worker, message, now)
                except ProtocolError as error:
                    crew.lose(f"broke the protocol: {error}")

    def _hear(self, slot: StageSlot, crew: StageCrew, worker: str, message: object, now: float) -> None:
        match message:
            case StageDone() | StageFailed() if self._counts(message.epoch):
                self._quiet = 0.0
                flight = self.flights.answer(worker, message, self._transport.now())
                if flight is not None:
                    self._over(flight)
            case Polled(epoch=epoch) if self._counts(epoch):
                self.flights.polled(worker, message)
            case Joined(epoch=epoch) if self._is_joining(epoch):
                self._joined.add(worker)
            case LinkLost(epoch=epoch, forward=forward, text=text) if self._is_joining(epoch) or self._counts(epoch):
                self._links.broke(slot.stage if forward else slot.stage - 1, text, now)
            case Measured(rank=rank):
                self._measured[worker] = rank
            case StageDone() | StageFailed() | Polled() | Joined() | LinkLost():
                pass
            case _:
                crew.hear(worker, message, now, self._transport.send)  # pyright: ignore[reportArgumentType]

    def _counts(self, epoch: int) -> bool:
        """Whether an answer is of this epoch: nothing else may have any effect."""
        return self._standing and epoch == self.epoch

    def _is_joining(self, epoch: int) -> bool:
        return self._joining_until is not None and epoch == self.epoch

    def _over(self, flight: Flight) -> None:
        """A batch is over; where it left the ranks of a stage apart, they cannot go on together."""
        if flight.error is None:
            self._breaks = 0
            self._links.forget()
            return
        stage = self.flights.out_of_step(flight)
        crew = None if stage is None else self._slots[stage].crew
        if crew is not None:
            crew.lose(f"is out of step after {flight.error}")

    def _watch(self, now: float, elapsed: float) -> None:
        """Finds out who is lost."""
        for slot in self._slots:
            if slot.successor is not None and (cause := slot.successor.check(now, elapsed)) is not None:
                self._lose_successor(slot, slot.successor, cause, now)
            if slot.crew is not None and (cause := slot.crew.check(now, elapsed)) is not None:
                self._lose_crew(slot, slot.crew, cause, now)

    def _lose_successor(self, slot: StageSlot, crew: StageCrew, cause: str, now: float) -> None:
        slot.successor, slot.trouble = None, cause
        slot.fail_at(crew.peer.id, now, self._limits.retry)
        if crew.refused is not None:
            slot.refused.add(crew.peer.id)
        self._dismiss(crew)
        if not self._started:
            self.ended = Ended(cause, False, crew.refused)

    def _lose_crew(self, slot: StageSlot, crew: StageCrew, cause: str, now: float) -> None:
        slot.crew, slot.home, slot.trouble = None, crew.peer.id, cause
        slot.since, slot.again = now, now
        self._emptied.add(slot.stage)
        # Whatever took the workers may have taken their machine.
        self._starter.look_again()
        self._dismiss(crew)
        self._break(cause)
        if not self._started:
            self.ended = Ended(cause, True, crew.refused)

    def _break(self, cause: str) -> None:
        """Nothing in flight will be told of."""
        if self._started and (self._standing or self._joining_until is not None):
            self._breaks = 1 if self._time - self._broke > self._limits.forget else self._breaks + 1
            self._broke = self._time
            if self._breaks > self._limits.breaks:
                self.ended = Ended(f"it broke {self._breaks} times without a batch between; at last {cause}", True)
        if self._standing:
            self.void = self.void or bool(len(self.flights)) or self.flights.transfers_running
            self._part_with_groups()
        self.void = self.void or (self._started and bool(self._emptied))
        self._standing, self._joining_until = False, None
        self._links.clear()

    def _part_with_groups(self) -> None:
        """Stages of several ranks do not outlive a break in the middle of a step: a rank may have begun what another
        never will, and wait for it in a collective, where the next batch's numbers would meet the last one's."""
        for slot in self._slots:
            crew = slot.crew
            if crew is not None and len(crew.workers) > 1 and self.flights.owes(slot.stage):
                slot.crew, slot.home, slot.trouble = None, crew.peer.id, "its ranks may be apart after a break"
                slot.since, slot.again = self._time, self._time
                self._emptied.add(slot.stage)
                self._dismiss(crew)

    def _go_on(self, now: float) -> None:
        if self._joining_until is not None:
            return self._await_joined(now, self._joining_until)
        if self._standing:
            return self._tend(now)
        for slot in self._slots:
            if slot.crew is None:
                self._mend(slot, now)
        if self.ended is None and all(slot.crew is not None for slot in self._slots):
            self._join(now)

    def _mend(self, slot: StageSlot, now: float) -> None:
        """A stage without a crew gets the one that is ready, or one is made ready."""
        if slot.successor is not None:
            if slot.successor.ready:
                self._succeed(slot)
            return
        if now < slot.again:
            return
        if not self._started:
            return self._begin_there(slot, slot.home, now)
        self._act(slot, self._decide(slot, now, leaving=False), now)

    def _decide(self, slot: StageSlot, now: float, *, leaving: bool) -> Decision:
        return decide(
            situation_of(
                slot, self._slots, self._loads, self._starter.machines(now), self._limits, now, leaving=leaving
            )
        )

    def _act(self, slot: StageSlot, decision: Decision, now: float) -> None:
        slot.trouble = decision.reason
        match decision:
            case Replace(peer=peer):
                self._begin_there(slot, peer, now)
            case Wait(until=until):
                slot.again = max(until, now + self._limits.signs.tick)
            case Replan(reason=reason):
                self.ended = Ended(reason, True)
            case GiveUp(reason=reason):
                self.ended = Ended(reason, False)

    def _begin_there(self, slot: StageSlot, peer: str, now: float) -> None:
        """Starts a crew on this machine, or counts that as failed."""
        others = tuple(
            other.stage
            for other in self._slots
            for crew in (other.crew, other.successor)
            if crew is not None and crew.peer.id == peer
        )
        started = self._starter.start(slot.stage, peer, others, now)
        if isinstance(started, StageCrew):
            slot.successor = started
            return
        slot.trouble = started
        slot.fail_at(peer, now, self._limits.retry)
        if not self._started:
            self.ended = Ended(started, True)

    def _succeed(self, slot: StageSlot) -> None:
        """The successor takes over; a crew that served until now goes."""
        old, slot.crew, slot.successor, slot.trouble = slot.crew, slot.successor, None, ""
        slot.failures.clear()
        slot.retry_at.clear()
        if old is not None:
            self._emptied.add(slot.stage)
            self.void = True
            self._dismiss(old)

    def _join(self, now: float) -> None:
        """A new epoch: all workers, stage after stage, whom rank 0 of each one dials."""
        for slot in self._slots:
            if slot.successor is not None and slot.successor.ready:
                self._succeed(slot)
        self._standing = False
        self.epoch += 1
        self._joined.clear()
        self._joining_until = now + self._limits.join
        self._links.clear()
        crews = [slot.crew for slot in self._slots if slot.crew is not None]
        self.flights = Flights([crew.workers for crew in crews])
        for crew, following in zip(crews, [*crews[1:], None], strict=True):
            for rank, worker in enumerate(crew.workers):
                forward = "" if following is None or rank else following.link
                self._transport.send(worker, Join(self.epoch, forward))

    def _await_joined(self, now: float, deadline: float) -> None:
        if len(self._joined) == len(self.workers):
            self._joining_until, self._standing, self._started = None, True, True
            return
        link = self._links.due(now)
        if link is None and now < deadline:
            return
        if link is None:
            missing = [
                slot.stage for slot in self._slots if slot.crew and not self._joined.issuperset(slot.crew.workers)
            ]
            link = max(0, min(missing) if len(missing) > 1 else min(missing) - 1)
            self._links.broke(link, "it was not made in time", now)
        self._rejoin(link, now)

    def _tend(self, now: float) -> None:
        """While it stands: broken links, and machines that want to leave."""
        link = self._links.due(now)
        if link is not None:
            return self._rejoin(link, now)
        if len(self.flights) and self._quiet > self._limits.stall:
            self._break(f"no worker has answered for {self._quiet:.0f} s")
            return
        if self.draining:
            if not len(self.flights):
                self._break_politely(now)
            return
        if self._starter.is_time_to_look(now):
            self._let_leave(now)

    def _break_politely(self, now: float) -> None:
        self.void = self.void or self.flights.transfers_running
        self._join(now)

    def _let_leave(self, now: float) -> None:
        """Stages on machines that are leaving get successors; machines that are not needed may go."""
        leaving = {peer.id for peer in self._starter.machines(now) if peer.health == "leaving"}
        for slot in self._slots:
            crew = slot.crew
            if crew is not None and crew.peer.id in leaving and slot.successor is None and now >= slot.again:
                slot.since = now
                self._act(slot, self._decide(slot, now, leaving=True), now)
        used = {crew.peer.id for slot in self._slots for crew in (slot.crew, slot.successor) if crew is not None}
        for peer in leaving - used - self._released:
            self._released.add(peer)
            self._cluster.released(peer)
        self._released &= leaving

    def _rejoin(self, link: int, now: float) -> None:
        """A link between two that live: once more, or without one of them."""
        text = self._links.text
        if self._links.strike(link, now) <= self._limits.rejoins:
            self._break(text)
            if self.ended is None and all(slot.crew is not None for slot in self._slots):
                self._join(now)
            return
        slot = self._slots[link + 1]
        if slot.crew is not None and slot.crew.peer.id == "" and self._slots[link].crew is not None:
            slot = self._slots[link]
        if slot.crew is not None:
            slot.fail_at(slot.crew.peer.id, now, self._limits.retry)
            slot.failures[slot.crew.peer.id] = self._limits.failures
            self._links.forget()
            self._lose_crew(slot, slot.crew, f"is given up, because its link does not hold: {text}", now)

    def _find(self, worker: str) -> tuple[StageSlot | None, StageCrew | None]:
        for slot in self._slots:
            for crew in (slot.crew, slot.successor):
                if crew is not None and worker in crew.workers:
                    return slot, crew
        return None, None

    def _send_all(self, message: ToStage) -> None:
        body = encoder.encode(message)
        for worker in self.workers:
            self._transport.send_encoded(worker, body)

    def _dismiss(self, crew: StageCrew) -> None:
        """Nothing more is heard of them, and they end."""
        for worker in crew.workers:
            self._transport.drop(worker)
        self._cluster.kill(crew.peer.id, crew.workers)
