"""StageMachine: what one worker of a stage does next, from what it was told. No sockets, no clock, no torch.

    orders  Join, StageStep ─►┌──────────────┐─► Answer     to the engine
    links   stand, break ────►│ StageMachine │─► OpenLinks  to the links, when an epoch begins
    frames  States, Skipped ─►└──────────────┘─► SendFrame  to the next stage
                                 ▲        │
                         finished│        ▼next_work
                               whoever computes

Steps are worked on one at a time in the order of their numbers, each when its order and, where the stage before
computes for it, its frame are there. Only messages of the epoch joined last count: those of earlier ones are dropped,
frames of later ones are kept until their Join has come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from backend.hidden_states import HiddenStates
from backend.workers.worker_messages import Choice, Step
from kvcache.transfer import TransferDone
from pipeline_ext.link_protocol import Frame, Keepalive, Skipped, States
from pipeline_ext.messages import FromStage, Join, Joined, LinkLost, StageDone, StageFailed, StageStep

# More than ever are in flight. Frames of an epoch that we have not been told of may be as many.
MOST_FRAMES = 64
SKIPPED = "the batch failed on a stage before"


@dataclass(frozen=True, slots=True)
class StagePlace:
    """Which worker this is: its rank of `ranks`, in stage `stage` of `stages`."""

    stage: int
    stages: int
    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1


@dataclass(frozen=True, slots=True)
class OpenLinks:
    """A new epoch: close the links of earlier ones, forget what steps said of sequences (a new StepDecoder), wait until
    no transfer runs, then open this epoch's. `forward` as in Join. Whoever cannot do that, ends."""

    epoch: int
    forward: str


@dataclass(frozen=True, slots=True)
class SendFrame:
    """To the next stage, by the link of the frame's epoch."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Answer:
    """To the engine."""

    message: FromStage


Action = OpenLinks | SendFrame | Answer


@dataclass(frozen=True, slots=True)
class Work:
    """A step whose turn it is. Its `step` is to be decoded in any case: the next one builds on it.

    Attributes:
        how: compute: run it, with `hidden` where the stage before has sent some. transfers: begin its transfers and
            run none of its slices. blank: run it with hidden states of zeros, because the other ranks of this stage
            run it too and nothing has come for it; what it brings counts for nothing, and is overwritten later.
    """

    epoch: int
    number: int
    step: Step
    how: Literal["compute", "transfers", "blank"]
    hidden: HiddenStates | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What a Work brought: results on rank 0 of the last stage, hidden states on rank 0 of those before it.

    Attributes:
        error: set where it raised: in short, for people.
        seconds: how long it took; `waited` before it had nothing to do.
        over: transfers that ended by then.
    """

    collectives: int
    seconds: float
    waited: float = 0.0
    results: tuple[Choice | None, ...] = ()
    hidden: HiddenStates | None = None
    error: str | None = None
    over: tuple[TransferDone, ...] = ()


class StageMachine:
    """Fed by one thread; `take` gives what is to be done now, in order, and `next_work` what is to be computed.

    What `take` gives after `finished` has to be done before the next Work is begun: hidden states may be views of
    memory that it writes.
    """

    def __init__(self, place: StagePlace) -> None:
        self._place = place
        self._epoch = -1
        self._next = 0
        self._steps: dict[int, StageStep] = {}
        self._frames: dict[int, States | Skipped] = {}
        self._early: deque[States | Skipped] = deque()
        # The first epoch of which frames came that could not be kept.
        self._overflown = -1
        self._lost: str | None = None
        self._behind = self._ahead = False
        self._joined = False
        self._current: Work | None = None
        self._order: StageStep | None = None
        self._skipped = False
        self._actions: list[Action] = []

    @property
    def epoch(self) -> int:
        """The one joined last; -1 before the first."""
        return self._epoch

    @property
    def takes_frames(self) -> bool:
        """Whether a link comes in here."""
        return self._place.rank == 0 and not self._place.first

    @property
    def sends_frames(self) -> bool:
        """Whether a link leaves from here."""
        return self._place.rank == 0 and not self._place.last

    def take(self) -> list[Action]:
        """What is to be done since the last call, in order."""
        actions, self._actions = self._actions, []
        return actions

    def join(self, order: Join) -> None:
        """The engine begins an epoch. One that is not above ours is stale, and ignored."""
        if order.epoch <= self._epoch:
            return
        self._epoch, self._next = order.epoch, 0
        self._steps.clear()
        self._frames.clear()
        self._lost, self._joined = None, False
        self._behind, self._ahead = not self.takes_frames, not self.sends_frames
        self._actions.append(OpenLinks(order.epoch, order.forward if self.sends_frames else ""))
        early, self._early = self._early, deque()
        for frame in early:
            self.frame(frame)
        if self._overflown == order.epoch:
            self.link_broken(order.epoch, False, "more frames came than can be in flight")
        self._join_if_linked()

    def step(self, order: StageStep) -> None:
        """The engine orders a step; one that is there already, or over, is ignored."""
        if self._counts(order.epoch) and order.number >= self._next:
            self._steps.setdefault(order.number, order)

    def link_stands(self, epoch: int, forward: bool) -> None:
        """A link of this epoch stands on both sides; `forward` says which."""
        if not self._counts(epoch):
            return
        if forward:
            self._ahead = True
        else:
            self._behind = True
        self._join_if_linked()

    def link_broken(self, epoch: int, forward: bool, text: str) -> None:
        """A link of this epoch broke, or could not be made. The engine decides what becomes of it."""
        if not self._counts(epoch) or self._lost is not None:
            return
        self._lost = text
        self._actions.append(Answer(LinkLost(epoch, forward, text)))

    def frame(self, frame: Frame) -> None:
        """The stage before has sent this. Duplicates and those of steps that are over are ignored."""
        if isinstance(frame, Keepalive) or not self.takes_frames:
            return
        if frame.epoch > self._epoch:
            self._keep_early(frame)
        elif self._counts(frame.epoch) and frame.number >= self._next:
            if frame.number >= self._next + MOST_FRAMES:
                self.link_broken(frame.epoch, False, f"a frame of step {frame.number} came before step {self._next}")
            else:
                self._frames.setdefault(frame.number, frame)

    def next_work(self) -> Work | None:
        """The step whose turn it is, to be answered by `finished`; None while there is none, or one is worked on."""
        order = self._steps.get(self._next)
        if self._current is not None or order is None or not self._joined:
            return None
        how, frame = self._how(order)
        if how is None:
            return None
        del self._steps[self._next]
        self._frames.pop(self._next, None)
        self._next += 1
        hidden = frame.hidden if isinstance(frame, States) else None
        self._current = Work(order.epoch, order.number, order.step, how, hidden)
        self._order = order
        self._skipped = isinstance(frame, Skipped)
        return self._current

    def finished(self, brought: Finished) -> None:
        """What the Work handed out last brought. Of an epoch that is over, nobody is told."""
        work, order = self._current, self._order
        self._current = self._order = None
        if work is None or order is None:
            raise RuntimeError("a work is finished that was not handed out")
        if not self._counts(work.epoch):
            return
        error = brought.error
        if error is None and self._skipped:
            error = SKIPPED
        self._hand_on(order, brought, failed=error is not None)
        if error is not None:
            answer = StageFailed(work.epoch, work.number, error, brought.collectives, brought.over)
        else:
            answer = StageDone(
                work.epoch,
                work.number,
                list(brought.results),
                brought.collectives,
                brought.seconds,
                brought.waited,
                brought.over,
            )
        self._actions.append(Answer(answer))

    def _counts(self, epoch: int) -> bool:
        """Whether this is of the epoch that we have joined last: nothing else may have any effect."""
        return epoch == self._epoch

    def _join_if_linked(self) -> None:
        if self._behind and self._ahead and not self._joined and self._lost is None:
            self._joined = True
            self._actions.append(Answer(Joined(self._epoch)))

    def _keep_early(self, frame: States | Skipped) -> None:
        """Of an epoch whose Join has not come yet. Only the newest one's can matter."""
        if self._early and self._early[0].epoch > frame.epoch:
            return
        if self._early and self._early[0].epoch < frame.epoch:
            self._early.clear()
        if len(self._early) >= MOST_FRAMES:
            self._overflown = frame.epoch
        else:
            self._early.append(frame)

    def _how(self, order: StageStep) -> tuple[Literal["compute", "transfers", "blank"] | None, Frame | None]:
        """What is to be done with a step, and the frame it uses; None where its frame is not there yet."""
        if not order.step.slices or self._place.stage >= order.until:
            return "transfers", None
        if not self.takes_frames:
            return "compute", None
        frame = self._frames.get(order.number)
        if isinstance(frame, Skipped):
            return ("transfers" if self._place.ranks == 1 else "blank"), frame
        return (None if frame is None else "compute"), frame

    def _hand_on(self, order: StageStep, brought: Finished, failed: bool) -> None:
        """What the next stage waits for, if it does."""
        if not self.sends_frames or not order.step.slices or self._place.stage + 1 >= order.until:
            return
        if failed or brought.hidden is None:
            self._actions.append(SendFrame(Skipped(order.epoch, order.number)))
        else:
            self._actions.append(SendFrame(States(order.epoch, order.number, brought.hidden)))
