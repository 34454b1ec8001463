"""Workers: all ranks of one engine: spoken to at once, watched, lost together. What they compute is the executor's."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from backend.errors import ShardwiseError
from backend.executor import DeviceLostError
from backend.process_log import rank_log
from backend.vital_signs import VitalLimits
from backend.workers.rank_watch import LIMITS, RankWatch
from backend.workers.worker_child import WorkerChild
from backend.workers.worker_messages import (
    FromWorker,
    Loading,
    Refused,
    StepDone,
    StepFailed,
    ToWorker,
    encoder,
)

# After one rank's step has failed, so long, or twice the longest step, is waited for the others, which may be stuck in
# a collective that it did not come to.
ERROR_SECONDS = 10.0
# How long the watch may take to find out whose death has closed a socket.
VERDICT_SECONDS = 5.0
CLOSE_SECONDS = 1.0

Answer = TypeVar("Answer", bound=FromWorker)
StepAnswer = StepDone | StepFailed


class Workers:
    """Made by `spawn`; all calls come from the thread that made it. DeviceLostError means that all ranks are killed."""

    def __init__(self, children: Sequence[WorkerChild], limits: VitalLimits) -> None:
        self._children = children
        self._watch = RankWatch(children, limits)
        self._poll = select.poll()
        self._by_number = {child.fileno(): child for child in children}
        for child in children:
            self._poll.register(child.fileno(), select.POLLIN)
        self._longest_step = 0.0

    @classmethod
    def spawn(
        cls,
        count: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path | None = None,
        limits: VitalLimits = LIMITS,
    ) -> Workers:
        """Starts so many processes, which import what they need meanwhile.

        log: the engine's, beside which each rank gets its own; None leaves their output on ours.
        """
        children: list[WorkerChild] = []
        try:
            for rank in range(count):
                children.append(WorkerChild.spawn(rank, command, environment, rank_log(log, rank)))
        except BaseException:
            for child in children:
                child.close(0.0)
            raise
        return cls(children, limits)

    def __len__(self) -> int:
        return len(self._children)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.pid for child in self._children)

    def check(self) -> None:
        """Raises DeviceLostError where a rank has been lost meanwhile."""
        if self._watch.cause is not None:
            self._fail(self._watch.cause)

    def ready(self, slow: bool) -> None:
        """The ranks have started, and are judged more strictly from now on."""
        self._watch.ready(slow)

    def lose(self, cause: str) -> NoReturn:
        """Kills all ranks for this cause, or an earlier one, and raises DeviceLostError."""
        self._watch.lose(cause)
        self._fail(self._watch.cause or cause)

    def ask(self, rank: int, message: ToWorker, kind: type[Answer]) -> Answer:
        """One rank's answer. Raises ShardwiseError where it refuses."""
        self._send(self._children[rank], encoder.encode(message))
        return self._expect(self._gather({rank}, lambda rank, message: None)[rank], kind)

    def prepare(
        self, orders: Sequence[ToWorker], kind: type[Answer], on_loading: Callable[[int, Loading], None]
    ) -> list[Answer]:
        """Gives each rank its order, and waits for all answers while it hands their progress on.

        Raises ShardwiseError as soon as one refuses; the others may be waiting for it, and can only be closed then.
        """
        for child, order in zip(self._children, orders, strict=True):
            self._send(child, encoder.encode(order))
        answers = self._gather(set(range(len(self))), on_loading)
        return [self._expect(answers[rank], kind) for rank in range(len(self))]

    def step(self, message: ToWorker) -> list[StepAnswer]:
        """Has all ranks do the same, and waits for all answers, in order of ranks."""
        began = time.monotonic()
        body = encoder.encode(message)
        for child in self._children:
            self._send(child, body)
        answers = self._gather(set(range(len(self))), lambda rank, message: None)
        self._longest_step = max(self._longest_step, time.monotonic() - began)
        return [self._expect_step(answers[rank]) for rank in range(len(self))]

    def close(self) -> None:
        """Ends and reaps all ranks; no call follows."""
        self._end(0.0 if self._watch.cause is not None else CLOSE_SECONDS)

    def _end(self, patience: float) -> None:
        self._watch.close()
        for child in self._children:
            child.close(patience)

    def _gather(self, ranks: set[int], on_loading: Callable[[int, Loading], None]) -> dict[int, FromWorker]:
        answers: dict[int, FromWorker] = {}
        deadline: float | None = None
        while len(answers) < len(ranks):
            for child, message in self._receive(deadline, answers):
                if isinstance(message, Loading):
                    on_loading(child.rank, message)
                    continue
                answers[child.rank] = message
                if isinstance(message, Refused):
                    self._expect(message, Loading)
                if isinstance(message, StepFailed) and deadline is None:
                    deadline = time.monotonic() + max(ERROR_SECONDS, 2 * self._longest_step)
        return answers

    def _receive(
        self, deadline: float | None, answers: Mapping[int, FromWorker]
    ) -> list[tuple[WorkerChild, FromWorker]]:
        """What comes next, from whomever; nobody waits for more than a failed rank's companions may take."""
        patience = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        found = self._poll.poll(patience)
        if not found:
            self._blame_failed(answers)
        received: list[tuple[WorkerChild, FromWorker]] = []
        for number, _ in found:
            child = self._by_number[number]
            try:
                messages = child.receive()
            except (ValueError, msgspec.MsgspecError) as error:
                self.lose(f"{child.name} broke the protocol: {error}")
            if messages is None:
                self._gone(child)
            received += [(child, message) for message in messages]
        return received

    def _blame_failed(self, answers: Mapping[int, FromWorker]) -> NoReturn:
        for rank, message in answers.items():
            if isinstance(message, StepFailed):
                self.lose(f"{self._children[rank].name} failed while others wait for it: {message.text}")
        raise RuntimeError("waited for ranks of which none has failed")

    def _send(self, child: WorkerChild, body: bytes) -> None:
        try:
            child.send_encoded(body)
        except OSError:
            self._gone(child)

    def _gone(self, child: WorkerChild) -> NoReturn:
        """A rank has closed its socket: the watch says why."""
        cause = self._watch.verdict(VERDICT_SECONDS)
        self.lose(cause or f"{child.name} went away")

    def _fail(self, cause: str) -> NoReturn:
        self._end(0.0)
        raise DeviceLostError(cause)

    def _expect(self, message: FromWorker, kind: type[Answer]) -> Answer:
        if isinstance(message, Refused):
            error = ShardwiseError(message.what, message.why, message.hint)
            error.code, error.exit_status = message.code, message.exit_status
            raise error
        if not isinstance(message, kind):
            self.lose(f"a rank answered {type(message).__name__} where {kind.__name__} was due")
        return message

    def _expect_step(self, message: FromWorker) -> StepAnswer:
        if not isinstance(message, StepDone | StepFailed):
            self.lose(f"a rank answered a step with {type(message).__name__}")
        return message
