"""The process of one rank: `python -m backend.workers.worker_process ORDERS PULSE`, both inherited sockets' numbers.

It does what the engine orders, one order after the other, and lets its heart beat on the second socket meanwhile. What
a rank does is RankWork's; the other end of the sockets is `worker_child`'s.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from backend.batch import Batch
from backend.errors import ShardwiseError
from backend.executor import DeviceLostError
from backend.frames import FrameReader, framed
from backend.parentage import adopt, die_with_parent
from backend.workers.rank_work import RankWork
from backend.workers.step_codec import StepDecoder
from backend.workers.worker_messages import (
    Broken,
    Describe,
    Described,
    FromWorker,
    Load,
    Loading,
    Measure,
    Measured,
    Poll,
    Pulse,
    Refused,
    Step,
    StepDone,
    StepFailed,
    ToWorker,
    Warm,
    WarmUp,
    encoder,
    pack_results,
    to_worker_decoder,
)

HEARTBEAT_SECONDS = 0.5
PROGRESS_SECONDS = 0.1
MESSAGE_CHARACTERS = 300

OpenRank = Callable[[], RankWork]


def leave(status: int) -> NoReturn:
    """Ends the process at once, from any thread, in the middle of a collective too."""
    sys.stderr.flush()
    os._exit(status)


class Heart:
    """Tells the engine from a thread of its own that this process lives, and ends it when the engine has gone."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._guard = threading.Lock()
        self._step_started: float | None = None
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def step_begins(self) -> None:
        self._step_started = time.monotonic()

    def step_ends(self) -> None:
        self._step_started = None

    def tell(self, message: Pulse | Broken) -> None:
        with self._guard:
            try:
                self._peer.sendall(framed(encoder.encode(message)))
            except OSError:
                leave(0)

    def _beat(self) -> None:
        while True:
            started = self._step_started
            self.tell(Pulse(0.0 if started is None else time.monotonic() - started))
            time.sleep(HEARTBEAT_SECONDS)


class Worker:
    """Obeys an engine. `serve` returns when the engine has closed its end."""

    def __init__(self, orders: socket.socket, heart: Heart, rank: RankWork) -> None:
        self._orders, self._heart, self._rank = orders, heart, rank
        self._decoder: StepDecoder | None = None
        self._stage, self._told = "", 0.0

    def serve(self) -> None:
        reader = FrameReader(self._orders)
        while (body := reader.next()) is not None:
            self._tell(self._obey(to_worker_decoder.decode(body)))

    def _tell(self, message: FromWorker) -> None:
        self._orders.sendall(framed(encoder.encode(message)))

    def _obey(self, message: ToWorker) -> FromWorker:
        match message:
            case Step():
                return self._step(message)
            case Poll(patience=patience):
                return StepDone([], self._rank.collectives, tuple(self._rank.transfers_done(patience)))
            case Measure():
                return self._measure()
            case Describe() | Load() | WarmUp():
                return self._prepare(message)

    def _measure(self) -> FromWorker:
        self._heart.step_begins()
        try:
            return Measured(self._rank.measure())
        finally:
            self._heart.step_ends()

    def _prepare(self, message: Describe | Load | WarmUp) -> FromWorker:
        try:
            if isinstance(message, WarmUp):
                self._rank.warm_up(self._report)
                return Warm()
            if isinstance(message, Describe):
                return Described(self._rank.describe(message.files))
            loaded = self._rank.load(message, self._report)
        except ShardwiseError as error:
            return Refused(error.code, error.exit_status, error.what, error.why, error.hint)
        self._decoder = StepDecoder(self._rank.groups)
        return loaded

    def _report(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Each stage's beginning and end, and ten a second between."""
        now = time.monotonic()
        complete = total > 0 and done >= total
        if stage == self._stage and not complete and now - self._told < PROGRESS_SECONDS:
            return
        self._stage, self._told = stage, now
        self._tell(Loading(stage, done, total))

    def _step(self, step: Step) -> FromWorker:
        if self._decoder is None:
            raise RuntimeError("a step came before the model was loaded")
        return self._run(self._decoder.decode(step))

    def _run(self, batch: Batch) -> FromWorker:
        rank = self._rank
        self._heart.step_begins()
        try:
            results = pack_results(rank.execute(batch))
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - the engine finds the request that is to blame
            return StepFailed(explanation(error), rank.collectives, tuple(rank.transfers_done(0.0)))
        finally:
            self._heart.step_ends()
        return StepDone(results, rank.collectives, tuple(rank.transfers_done(0.0)))


def explanation(error: BaseException) -> str:
    """Of an exception, for people: its kind and first line, not longer than a message should be."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text[:MESSAGE_CHARACTERS]


def main(arguments: list[str], open_rank: OpenRank) -> None:
    """The process. `open_rank` is called when the heart beats already: imports may take long."""
    faulthandler.enable()
    # What the rank chose and measured, by what means it adds up for one, belongs into its log.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("shardwise").setLevel(logging.INFO)
    # A terminal's Ctrl+C is the server's to interpret: it may want to drain first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    orders, pulse = (adopt(int(argument)) for argument in arguments)
    heart = Heart(pulse)
    try:
        Worker(orders, heart, open_rank()).serve()
    except ConnectionError:
        leave(0)
    except Exception as error:  # noqa: BLE001 - the edge of the process: the engine tells the server why it ended
        traceback.print_exc()
        heart.tell(Broken(str(error) if isinstance(error, DeviceLostError) else explanation(error)))
        leave(1)
    leave(0)


def open_real_rank() -> RankWork:
    """Imports torch and the model code, which takes seconds, before the engine orders anything."""
    from backend.workers.model_rank import ModelRank

    return ModelRank()


if __name__ == "__main__":
    main(sys.argv[1:], open_real_rank)
