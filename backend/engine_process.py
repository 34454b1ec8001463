"""The engine process: builds an Engine from the settings it is sent, then steps it while there is work.

It is `python -m backend.engine_process FD`, FD one end of a Unix socket pair; the other end, the server's,
is the `supervisor`'s. What a step does is `engine`'s.
"""

from __future__ import annotations

import faulthandler
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Protocol

import msgspec

from backend.engine_channel import EngineChannel, leave
from backend.engine_settings import EngineSettings
from backend.errors import ShardwiseError
from backend.events import EngineStatistics
from backend.executor import DeviceLostError
from backend.frames import receive_frame
from backend.measured_rank import MeasuredRank
from backend.messages import (
    Cancel,
    Lost,
    Measure,
    Measured,
    Progress,
    Ready,
    StartFailed,
    StepOutput,
    Submit,
    ToEngine,
)
from backend.parentage import adopt, die_with_parent
from backend.planner.plan import Plan
from backend.request import Request
from backend.standing import Standing

PROGRESS_SECONDS = 0.1
# Without a message for so long, there is time to put cached pages on disk; and so long between parts of that.
IDLE_SECONDS = 1.0
TIDYING_SECONDS = 0.05

OnProgress = Callable[[str, int, int], None]


class SteppedEngine(Protocol):
    """What this process asks of an Engine. All calls come from one thread."""

    @property
    def has_work(self) -> bool: ...

    def submit(self, request: Request, /) -> None: ...

    def cancel(self, request_id: str, /) -> None: ...

    def step(self) -> StepOutput: ...

    def idle(self) -> StepOutput | None: ...

    def statistics(self) -> EngineStatistics: ...

    def measure(self) -> tuple[MeasuredRank, ...]: ...

    def standing(self) -> Standing | None: ...


class Composed(Protocol):
    """What composing brings: the engine and what Ready tells of it."""

    @property
    def engine(self) -> SteppedEngine: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def weights_bytes(self) -> tuple[int, ...]: ...
    @property
    def rank_pids(self) -> tuple[int, ...]: ...
    @property
    def devices(self) -> tuple[str, ...]: ...
    @property
    def max_context(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...


Compose = Callable[[EngineSettings, OnProgress], Composed]


def run(peer: socket.socket, compose: Compose) -> None:
    """Serves one server over `peer` until it says Stop or goes away, which end the process; returns after
    StartFailed.

    `compose` is called with the settings, the first frame on the socket. A ShardwiseError in it is
    reported; a lost device or rank, now or later, is told and ends the process; any other exception is a bug
    of ours and leaves through the caller, so that its traceback is in the log.
    """
    settings = receive_frame(peer)
    if settings is None:
        return
    channel = EngineChannel(peer)
    try:
        _run(settings, channel, compose)
    except DeviceLostError as error:
        traceback.print_exc()
        channel.send(Lost(str(error)))
        channel.flush(seconds=1.0)
        leave(1)


def _run(settings: bytes, channel: EngineChannel, compose: Compose) -> None:
    try:
        composed = compose(msgspec.msgpack.decode(settings, type=EngineSettings), ProgressReporter(channel).report)
    except ShardwiseError as error:
        channel.send(StartFailed(code=error.code, what=error.what, why=error.why, hint=error.hint))
        channel.flush(seconds=5.0)
        return
    channel.send(
        Ready(
            plan=composed.plan,
            max_context=composed.max_context,
            vocabulary=composed.vocabulary,
            weights_bytes=composed.weights_bytes,
            rank_pids=composed.rank_pids,
            devices=composed.devices,
            statistics=composed.engine.statistics(),
            measured=composed.engine.measure(),
            standing=composed.engine.standing(),
        )
    )
    serve(composed.engine, channel)


def serve(engine: SteppedEngine, channel: EngineChannel) -> None:
    """Steps while there is work; waits while there is none, and lets the engine tidy up. Never returns."""
    patience = IDLE_SECONDS
    while True:
        message = channel.receive_now() if engine.has_work else channel.receive(patience)
        if message is None and not engine.has_work:
            patience = _idle(engine, channel)
        while message is not None:
            _obey(engine, message, channel)
            message = channel.receive_now()
        if engine.has_work:
            channel.step_begins()
            output = engine.step()
            channel.step_ends()
            channel.send(output)
            patience = IDLE_SECONDS


def _idle(engine: SteppedEngine, channel: EngineChannel) -> float:
    """Gives the engine a moment without work: how long to wait before the next."""
    channel.step_begins()
    output = engine.idle()
    channel.step_ends()
    if output is None:
        return IDLE_SECONDS
    channel.send(output)
    return TIDYING_SECONDS


def _obey(engine: SteppedEngine, message: ToEngine, channel: EngineChannel) -> None:
    match message:
        case Submit(request=request):
            engine.submit(request)
        case Cancel(request=request):
            engine.cancel(request)
        case Measure():
            # A driver that is asked may hang: that counts as a step that does.
            channel.step_begins()
            ranks = engine.measure()
            channel.step_ends()
            channel.send(Measured(ranks))


class ProgressReporter:
    """Turns progress calls into messages: each stage's beginning and end, and ten a second between."""

    def __init__(self, channel: EngineChannel) -> None:
        self._channel = channel
        self._stage = ""
        self._last = 0.0

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        now = time.monotonic()
        complete = total > 0 and done >= total
        if stage == self._stage and not complete and now - self._last < PROGRESS_SECONDS:
            return
        self._stage, self._last = stage, now
        self._channel.send(Progress(stage, done, total))


def main(arguments: list[str], compose: Compose) -> None:
    """The process: `arguments` is the number of the inherited socket."""
    faulthandler.enable()
    # A terminal's Ctrl+C is the server's to interpret: it may want to drain first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    run(adopt(int(arguments[0])), compose)


def compose_for_real(settings: EngineSettings, on_progress: OnProgress) -> Composed:
    """Composes late, so that what torch's import takes is told as progress."""
    on_progress("read", 0, 0)
    from backend.compose_engine import compose_engine

    return compose_engine(settings, on_progress)


if __name__ == "__main__":
    main(sys.argv[1:], compose_for_real)
