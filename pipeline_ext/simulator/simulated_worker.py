"""SimulatedWorker: a worker process of a stage over simulated lines and links: a StageMachine and a toy device.

It does in simulated time what `stage_worker`, `engine_lines` and `stage_links` do with threads and sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from backend.batch import Sampled
from backend.hidden_states import HiddenStates
from backend.workers.step_codec import StepDecoder
from backend.workers.worker_messages import pack_results
from pipeline_ext.messages import (
    Beat,
    FromStage,
    Join,
    Loading,
    LoadStage,
    Poll,
    Polled,
    Pulse,
    Refused,
    StageLoaded,
    StageStep,
    ToStage,
    Warm,
    WarmUp,
)
from pipeline_ext.simulator.clock import Action
from pipeline_ext.simulator.simulated_links import LinkHappening, SimulatedLinks
from pipeline_ext.simulator.toy_stage import COLUMNS, ToyStage
from pipeline_ext.simulator.wires import CLOSED, Connection, Network, Process
from pipeline_ext.stage_machine import Answer, Finished, OpenLinks, SendFrame, StageMachine, StagePlace, Work

PULSE_SECONDS = 0.5
SILENCE_SECONDS = 6.0
START_SECONDS = 0.3

MakeMachine = Callable[[StagePlace], StageMachine]


class WorkerSurroundings(Protocol):
    """What a worker needs of the simulation."""

    network: Network
    make_machine: MakeMachine

    def dial_engine(self, process: Process) -> tuple[Connection, Connection] | None:
        """Its orders and its pulse; None where there is no engine any more."""
        ...

    def links_of(self, place: str) -> SimulatedLinks | None:
        """Who listens there."""
        ...

    def listen(self, place: str, links: SimulatedLinks) -> None: ...

    def make_stage(self, order: LoadStage) -> ToyStage | Refused:
        """The device of this stage, or why it cannot be had here."""
        ...

    def compute_seconds(self, process: Process, work: Work) -> float: ...

    def load_seconds(self, process: Process) -> float: ...

    def note(self, text: str) -> None: ...


class SimulatedWorker:
    """Of one process; everything it does comes of the clock and of what it hears."""

    def __init__(self, surroundings: WorkerSurroundings, process: Process, name: str) -> None:
        self._around, self._process, self._name = surroundings, process, name
        self._machine: StageMachine | None = None
        self._stage: ToyStage | None = None
        self._links: SimulatedLinks | None = None
        self._decoder = StepDecoder(1)
        self._groups = self._rank = 0
        self._orders: Connection | None = None
        self._pulse: Connection | None = None
        self._inbox: deque[Action] = deque()
        self._busy = False
        self._step_began: float | None = None
        self._idle_since = 0.0
        self._waited = 0.0
        self._silent, self._last = 0.0, 0.0
        process.after(START_SECONDS, self._dial)

    def _dial(self) -> None:
        lines = self._around.dial_engine(self._process)
        if lines is None:
            return self._process.die()
        self._orders, self._pulse = lines
        self._orders.listen(self._process, self._hear)
        self._pulse.listen(self._process, self._hear_beat)
        for line, kind in ((self._orders, "orders"), (self._pulse, "pulse")):
            line.send(self._process, (self._name, kind))
        self._last = self._idle_since = self._now
        self._beat()

    @property
    def _now(self) -> float:
        return self._around.network.clock.now

    # The pulse, as a thread of its own.

    def _beat(self) -> None:
        if self._pulse is None:
            return
        began = self._step_began
        self._pulse.send(self._process, Pulse(0.0 if began is None else self._now - began))
        self._silent += min(self._now - self._last, 2 * PULSE_SECONDS)
        self._last = self._now
        if self._silent > SILENCE_SECONDS:
            self._around.note(f"{self._process.name} ends: the engine is silent")
            return self._process.die()
        self._process.after(PULSE_SECONDS, self._beat)

    def _hear_beat(self, message: object) -> None:
        if message is CLOSED:
            self._process.die()
        elif isinstance(message, Beat):
            self._silent = 0.0

    # The main thread, which takes one thing after the other.

    def _hear(self, message: object) -> None:
        if message is CLOSED:
            return self._process.die()
        self._queue(lambda: self._obey(message))  # pyright: ignore[reportArgumentType]

    def _happened(self, happening: LinkHappening) -> None:
        self._queue(lambda: self._link_happened(happening))

    def _queue(self, action: Action) -> None:
        self._inbox.append(action)
        self._drain()

    def _drain(self) -> None:
        while not self._busy and self._process.alive:
            if self._inbox:
                self._inbox.popleft()()
                self._act()
            elif not self._work():
                return

    def _occupy(self, seconds: float, then: Action) -> None:
        """Computes, or loads, for so long."""
        self._waited = self._now - self._idle_since
        self._busy, self._step_began = True, self._now

        def over() -> None:
            self._busy, self._step_began, self._idle_since = False, None, self._now
            then()
            self._act()
            self._drain()

        self._process.after(seconds, over)

    def _send(self, message: FromStage) -> None:
        if self._orders is not None:
            self._orders.send(self._process, message)

    def _obey(self, message: ToStage) -> None:
        match message:
            case LoadStage():
                self._send(Loading("load", 0, 2))
                seconds = self._around.load_seconds(self._process)
                self._process.after(seconds / 2, lambda: self._send(Loading("load", 1, 2)))
                self._occupy(seconds, lambda: self._load(message))
            case WarmUp():
                self._occupy(0.1, lambda: self._send(Warm()))
            case Join() if self._machine is not None:
                self._machine.join(message)
            case StageStep() if self._machine is not None:
                self._machine.step(message)
            case Poll() if self._machine is not None and self._stage is not None:
                self._send(Polled(self._machine.epoch, self._stage.over()))
            case _:
                raise RuntimeError(f"{self._process.name} cannot obey {message}")

    def _load(self, order: LoadStage) -> None:
        made = self._around.make_stage(order)
        if isinstance(made, Refused):
            return self._send(made)
        self._stage = made
        ranks = len(order.load.plan.ranks)
        self._rank, self._groups = order.load.rank, 2
        place = StagePlace(order.stage, order.stage + (1 if order.span.ends else 2), self._rank, ranks)
        self._machine = self._around.make_machine(place)
        self._links = SimulatedLinks(
            self._around.network,
            self._process,
            order.stage,
            order.load.plan.step_tokens,
            self._around.links_of,
            self._happened,
        )
        self._around.listen(self._process.name, self._links)
        self._send(StageLoaded(self._process.name, "cpu", 1, ()))

    def _link_happened(self, happening: LinkHappening) -> None:
        machine = self._machine
        if machine is None:
            return
        if happening.frame is not None:
            machine.frame(happening.frame)
        elif happening.broken is not None:
            machine.link_broken(happening.epoch, happening.forward, happening.broken)
        else:
            machine.link_stands(happening.epoch, happening.forward)

    def _act(self) -> None:
        if self._machine is None:
            return
        for action in self._machine.take():
            match action:
                case Answer(message=message):
                    self._send(message)
                case SendFrame(frame=frame) if self._links is not None:
                    self._links.send(frame)
                case OpenLinks(epoch=epoch, forward=forward) if self._links is not None and self._stage is not None:
                    self._stage.forget_transfers()
                    self._decoder = StepDecoder(self._groups)
                    self._links.join(epoch, forward)
                case _:
                    pass

    def _work(self) -> bool:
        work = None if self._machine is None else self._machine.next_work()
        if work is None:
            return False
        self._occupy(self._around.compute_seconds(self._process, work), lambda: self._finish(work))
        return True

    def _finish(self, work: Work) -> None:
        machine, stage = self._machine, self._stage
        if machine is None or stage is None:
            return
        seconds = 0.0 if self._step_began is None else self._now - self._step_began
        brought: HiddenStates | list[Sampled | None] = []
        error = None
        try:
            brought = self._compute(work, stage)
        except (RuntimeError, ValueError) as failure:
            error = str(failure)
        stage.collectives += 1
        hidden = brought if isinstance(brought, HiddenStates) else None
        results = () if isinstance(brought, HiddenStates) else tuple(pack_results(brought))
        machine.finished(Finished(stage.collectives, seconds, self._waited, results, hidden, error, stage.over()))

    def _compute(self, work: Work, stage: ToyStage) -> HiddenStates | list[Sampled | None]:
        batch = self._decoder.decode(work.step)
        stage.begin(batch.transfers)
        if work.how == "transfers":
            batch = replace(batch, slices=())
        if self._rank or not batch.slices:
            return [None for _ in batch.slices]
        hidden = work.hidden
        if work.how == "blank":
            hidden = HiddenStates("float32", batch.token_count, COLUMNS, bytes(8 * batch.token_count))
        return stage.run(batch, hidden)
