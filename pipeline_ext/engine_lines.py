"""EngineLines: a worker's two lines to its engine: orders come by one, and the pulse of both sides goes over the other.

Without an engine there is nothing to do: the process ends when a line closes, and when the engine has been silent for
too long, in the middle of a step too.
"""

from __future__ import annotations

import os
import select
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from pipeline_ext.dial import dial, line_context, say
from pipeline_ext.hello import LineHello, LineKind
from pipeline_ext.messages import Broken, FromStage, Pulse, ToStage, encoder, to_stage_decoder
from pipeline_ext.stage_child import StageStart
from pipeline_ext.stream import Stream

HEARTBEAT_SECONDS = 0.5
# Beats come each second. A tick that comes late means that this process stood still itself, with beats unread.
SILENCE_SECONDS = 6.0
DIAL_SECONDS = 30.0
REDIAL_SECONDS = 0.3


def leave(status: int) -> NoReturn:
    """Ends the process at once, from any thread, in the middle of a collective too."""
    sys.stderr.flush()
    os._exit(status)


class EngineLines:
    """Made by `open_lines`. `send` and `step_*` belong to the main thread."""

    def __init__(self, orders: Stream, pulse: Stream, put: Callable[[ToStage], None]) -> None:
        self._orders, self._pulse, self._put = orders, pulse, put
        # Whether there is something that only this engine can want; without, another one may have the process.
        self.bound = True
        self._step_started: float | None = None
        threading.Thread(target=self._read, name="orders", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def send(self, message: FromStage) -> None:
        self._orders.send(encoder.encode(message))

    def step_begins(self) -> None:
        self._step_started = time.monotonic()

    def step_ends(self) -> None:
        self._step_started = None

    def end(self, word: Broken) -> NoReturn:
        """Says a last word, and ends the process."""
        self._orders.send(encoder.encode(word))
        self._orders.flush(2.0)
        leave(1)

    def _read(self) -> None:
        try:
            while (body := self._orders.next()) is not None:
                self._put(to_stage_decoder.decode(body))
        except OSError:
            pass
        except (ValueError, msgspec.MsgspecError) as error:
            print(f"the engine broke the protocol: {error}", file=sys.stderr)
            leave(1)
        if self.bound:
            leave(0)
        self._orders.close()
        self._pulse.close()

    def _beat(self) -> None:
        """Tells that we live, and listens whether the engine does."""
        silent, last = 0.0, time.monotonic()
        poll = select.poll()
        poll.register(self._pulse.fileno(), select.POLLIN)
        while not self._pulse.closed:
            started = self._step_started
            self._pulse.send(encoder.encode(Pulse(0.0 if started is None else time.monotonic() - started)))
            if self._heard(poll):
                silent = 0.0
            now = time.monotonic()
            silent += min(now - last, 2 * HEARTBEAT_SECONDS)
            last = now
            if silent > SILENCE_SECONDS:
                print(f"the engine gave no sign of life for {silent:.1f} s", file=sys.stderr)
                leave(0)

    def _heard(self, poll: select.poll) -> bool:
        """Whether a beat came; takes the time from one pulse to the next."""
        deadline, heard = time.monotonic() + HEARTBEAT_SECONDS, False
        while (left := deadline - time.monotonic()) > 0:
            if not poll.poll(left * 1000):
                break
            try:
                if not self._pulse.receive():
                    if self.bound:
                        leave(0)
                    self._pulse.close()
                    return heard
            except ValueError:
                leave(1)
            while self._pulse.take() is not None:
                heard = True
        return heard


def open_lines(words: StageStart, put: Callable[[ToStage], None]) -> EngineLines:
    """Both lines to the engine's door, which may open a little later.

    Raises OSError where it does not, or turns us away, and ValueError for what is no door.
    """
    context = line_context(Path(words.identity)) if words.identity else None
    kinds: tuple[LineKind, LineKind] = ("orders", "pulse")
    orders, pulse = (_open(words, kind, context) for kind in kinds)
    return EngineLines(orders, pulse, put)


def _open(words: StageStart, kind: LineKind, context: ssl.SSLContext | None) -> Stream:
    deadline = time.monotonic() + DIAL_SECONDS
    while True:
        try:
            stream = dial(words.door, context)
            break
        except (ConnectionRefusedError, FileNotFoundError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(REDIAL_SECONDS)
    say(stream, LineHello(words.worker, kind, os.getpid(), words.secret))
    return stream
