"""StageWorker: one rank of a stage: obeys its engine and its links, computing in the order that StageMachine says.

Everything comes by one queue, filled by threads that read; what goes out never waits. So the next batch is computed
while the last one's hidden states are still on their way.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from backend.batch import Batch, Sampled
from backend.errors import ShardwiseError
from backend.executor import DeviceLostError
from backend.hidden_states import DTYPE_BYTES, HiddenStates
from backend.workers.rank_work import StageWork
from backend.workers.step_codec import StepDecoder
from backend.workers.worker_messages import pack_results
from backend.workers.worker_process import explanation
from kvcache.transfer import TransferDone
from pipeline_ext.link_protocol import FrameLimits, LinkError, frame_parts, parse_frame
from pipeline_ext.messages import (
    Beat,
    Describe,
    Described,
    FromStage,
    Join,
    Loading,
    LoadStage,
    Measure,
    Measured,
    Poll,
    Polled,
    Refused,
    StageLoaded,
    StageStep,
    ToStage,
    Warm,
    WarmUp,
)
from pipeline_ext.stage_links import LinkBroken, LinkEvent, LinkFrame, LinkStands, StageLinks
from pipeline_ext.stage_machine import Answer, Finished, OpenLinks, SendFrame, StageMachine, StagePlace, Work

PROGRESS_SECONDS = 0.1
# Transfers that do not end for so long hang in a driver or on a disk.
TRANSFER_SECONDS = 10.0
POLL_SECONDS = 0.2

Inbox = queue.SimpleQueue[ToStage | LinkEvent]
# Makes the links of a stage, and listens for the stage before where one links in: the place, or nothing.
OpenStageLinks = Callable[[LoadStage], tuple[StageLinks, str]]
# Makes sure that the stage's files are here, and says with which order to load.
Provide = Callable[[LoadStage, Callable[[str, int, int], None]], LoadStage]


class Lines(Protocol):
    """What `Employment` does, from here."""

    def send(self, message: FromStage, /) -> None: ...

    def step_begins(self) -> None: ...

    def step_ends(self) -> None: ...

    def load(self) -> None:
        """From now on there is something to lose."""
        ...


class StageWorker:
    """`serve` never returns; what it raises ends the process."""

    def __init__(
        self, inbox: Inbox, lines: Lines, rank: StageWork, open_links: OpenStageLinks, provide: Provide
    ) -> None:
        self._inbox, self._lines, self._rank = inbox, lines, rank
        self._open_links, self._provide = open_links, provide
        self._links: StageLinks | None = None
        self._machine: StageMachine | None = None
        self._decoder = StepDecoder(1)
        self._limits = FrameLimits(1, 1)
        # Numbers of transfers that have begun and not ended.
        self._transfers: set[int] = set()
        self._waited = 0.0
        self._stage, self._told = "", 0.0

    def serve(self) -> None:
        while True:
            began = time.monotonic()
            item = self._inbox.get()
            self._waited += time.monotonic() - began
            self._take_in(item)
            while self._work():
                pass

    def _work(self) -> bool:
        """Computes what is due; whether something was."""
        machine = self._machine
        if machine is None:
            return False
        self._act(machine)
        job = machine.next_work()
        if job is None:
            return False
        machine.finished(self._run(job))
        self._act(machine)
        self._take_in_all()
        return True

    def _take_in_all(self) -> None:
        while True:
            try:
                self._take_in(self._inbox.get_nowait())
            except queue.Empty:
                return

    def _take_in(self, item: ToStage | LinkEvent) -> None:
        match item:
            case StageStep():
                self._joined.step(item)
            case LinkFrame(epoch=epoch, body=body):
                self._take_frame(epoch, body)
            case Join():
                self._joined.join(item)
            case LinkStands(epoch=epoch, forward=forward):
                self._joined.link_stands(epoch, forward)
            case LinkBroken(epoch=epoch, forward=forward, text=text):
                self._joined.link_broken(epoch, forward, text)
            case Poll(patience=patience):
                self._lines.send(Polled(self._joined.epoch, self._over(patience)))
            case Measure():
                self._measure()
            case Describe() | LoadStage() | WarmUp():
                self._prepare(item)
            case Beat():
                pass

    def _take_frame(self, epoch: int, body: bytes | bytearray) -> None:
        machine = self._joined
        try:
            frame = parse_frame(body, self._limits)
            if frame.epoch != epoch:
                raise LinkError(f"a frame of epoch {frame.epoch} on a link of {epoch}")
        except LinkError as error:
            if self._links is not None:
                self._links.cut(epoch)
            return machine.link_broken(epoch, False, str(error))
        machine.frame(frame)

    def _measure(self) -> None:
        # A driver that is asked may hang: that counts as a step that does.
        self._lines.step_begins()
        try:
            measured = Measured(self._rank.measure())
        finally:
            self._lines.step_ends()
        self._lines.send(measured)

    def _prepare(self, message: Describe | LoadStage | WarmUp) -> None:
        try:
            self._lines.send(self._prepared(message))
        except ShardwiseError as error:
            self._lines.send(Refused(error.code, error.exit_status, error.what, error.why, error.hint))

    def _prepared(self, message: Describe | LoadStage | WarmUp) -> FromStage:
        match message:
            case WarmUp():
                self._rank.warm_up(self._report)
                return Warm()
            case Describe(files=files):
                return Described(self._rank.describe(files))
            case LoadStage():
                self._lines.load()
                return self._load(self._provide(message, self._report))

    def _load(self, order: LoadStage) -> StageLoaded:
        load, plan = order.load, order.load.plan
        loaded = self._rank.load_stage(load, order.span, self._report)
        self._limits = FrameLimits(max(plan.step_tokens, plan.max_sequences), self._rank.hidden_columns)
        self._links, place = self._open_links(order)
        stages = order.stage + (1 if order.span.ends else 2)
        self._machine = StageMachine(StagePlace(order.stage, stages, load.rank, len(plan.ranks)))
        return StageLoaded(
            place,
            loaded.device,
            loaded.weights_bytes,
            loaded.kernel_orders,
            loaded.recompute_lengths,
            loaded.scaled_past,
        )

    def _report(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Each stage's beginning and end, and ten a second between."""
        now = time.monotonic()
        complete = total > 0 and done >= total
        if stage == self._stage and not complete and now - self._told < PROGRESS_SECONDS:
            return
        self._stage, self._told = stage, now
        self._lines.send(Loading(stage, done, total))

    @property
    def _joined(self) -> StageMachine:
        if self._machine is None:
            raise RuntimeError("an order came before the stage was loaded")
        return self._machine

    def _act(self, machine: StageMachine) -> None:
        for action in machine.take():
            match action:
                case Answer(message=message):
                    self._lines.send(message)
                case SendFrame(frame=frame):
                    if self._links is not None:
                        self._links.send(frame.epoch, *frame_parts(frame))
                case OpenLinks(epoch=epoch, forward=forward):
                    self._settle()
                    self._decoder = StepDecoder(self._rank.groups)
                    if self._links is not None:
                        self._links.join(epoch, forward)

    def _settle(self) -> None:
        """Waits until no transfer runs. Raises DeviceLostError where one does not end."""
        deadline = time.monotonic() + TRANSFER_SECONDS
        while self._transfers:
            self._over(POLL_SECONDS)
            if self._transfers and time.monotonic() > deadline:
                raise DeviceLostError(f"{len(self._transfers)} transfers do not end")

    def _over(self, patience: float) -> tuple[TransferDone, ...]:
        """The transfers that ended since the last call."""
        over = tuple(self._rank.transfers_done(min(patience, POLL_SECONDS) if self._transfers else 0.0))
        self._transfers.difference_update(one.number for one in over)
        return over

    def _run(self, job: Work) -> Finished:
        waited, self._waited = self._waited, 0.0
        batch = self._decoder.decode(job.step)
        self._transfers.update(one.number for one in batch.transfers)
        began = time.monotonic()
        self._lines.step_begins()
        try:
            brought = self._compute(job, batch)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - the engine finds the request that is to blame
            return Finished(self._rank.collectives, 0.0, waited, error=explanation(error), over=self._over(0.0))
        finally:
            self._lines.step_ends()
        hidden = brought if isinstance(brought, HiddenStates) else None
        results = () if isinstance(brought, HiddenStates) else tuple(pack_results(brought))
        seconds = time.monotonic() - began
        return Finished(self._rank.collectives, seconds, waited, results, hidden, over=self._over(0.0))

    def _compute(self, job: Work, batch: Batch) -> HiddenStates | list[Sampled | None]:
        hidden = job.hidden
        if job.how == "transfers":
            batch = replace(batch, slices=())
        elif job.how == "blank":
            hidden = _zeros(self._rank.hidden_dtype, batch.token_count, self._rank.hidden_columns)
        return self._rank.run_stage(batch, hidden)


def _zeros(dtype: str, rows: int, columns: int) -> HiddenStates:
    return HiddenStates(dtype, rows, columns, bytes(rows * columns * DTYPE_BYTES[dtype]))
