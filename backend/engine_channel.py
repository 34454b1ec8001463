"""EngineChannel: the engine process' end of its socket: inbox, outbox and heartbeat, beside the steps.

What the messages mean is `engine_process`'s; how the process ends when its server has gone is decided here.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

from backend.frames import receive_frame
from backend.messages import FromEngine, Heartbeat, Stop, ToEngine, frame, to_engine_decoder

HEARTBEAT_SECONDS = 0.5
MAX_UNSENT_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 64 * 1024


def leave(status: int) -> NoReturn:
    """Ends the process at once, from any thread, in the middle of a step, with the helpers it started."""
    sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        # The supervisor gave us a process group of our own; torch's compile workers are in it.
        os.killpg(0, signal.SIGKILL)
    os._exit(status)


class Outbox:
    """Sends frames in order: the caller's thread what the socket takes, a thread of its own the rest.

    A server that reads slowly lets `MAX_UNSENT_BYTES` gather, then `send` waits for it: so memory is
    bounded, and a server that has died ends the wait with the process.
    """

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._unsent = bytearray()
        self._changed = threading.Condition()
        threading.Thread(target=self._write, name="outbox", daemon=True).start()

    def send(self, message: FromEngine) -> None:
        data = frame(message)
        with self._changed:
            self._changed.wait_for(lambda: len(self._unsent) < MAX_UNSENT_BYTES)
            sent = 0 if self._unsent else self._send_now(data)
            if sent < len(data):
                self._unsent += data[sent:]
                self._changed.notify_all()

    def _send_now(self, data: bytes) -> int:
        """Bytes that the socket takes without waiting: waking the other thread would cost time each step."""
        try:
            return self._peer.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            leave(0)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent)
                chunk = bytes(self._unsent[:CHUNK_BYTES])
            try:
                sent = self._peer.send(chunk)
            except OSError:
                leave(0)
            with self._changed:
                # Only this thread removes, so the chunk is still in front.
                del self._unsent[:sent]
                self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Waits until everything is sent, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unsent, timeout=seconds)


class EngineChannel:
    """The socket to the server, with a thread that reads, one that writes and one whose heart beats.

    The reader ends the process on Stop and when the server closes its end, which is also what its death
    looks like: so nothing outlives the server, in the middle of a long step included.
    """

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._outbox = Outbox(peer)
        self._step_started: float | None = None
        for name, body in (("inbox", self._read), ("heartbeat", self._beat)):
            threading.Thread(target=body, name=name, daemon=True).start()

    def send(self, message: FromEngine) -> None:
        self._outbox.send(message)

    def flush(self, seconds: float) -> None:
        self._outbox.flush(seconds)

    def receive(self, seconds: float) -> ToEngine | None:
        """The next message; waits so long for one, then says None."""
        try:
            return self._inbox.get(timeout=seconds)
        except queue.Empty:
            return None

    def receive_now(self) -> ToEngine | None:
        """The next message if one is here."""
        try:
            return self._inbox.get_nowait()
        except queue.Empty:
            return None

    def step_begins(self) -> None:
        self._step_started = time.monotonic()

    def step_ends(self) -> None:
        self._step_started = None

    def _read(self) -> None:
        try:
            while (body := receive_frame(self._peer)) is not None:
                message = to_engine_decoder.decode(body)
                if isinstance(message, Stop):
                    leave(0)
                self._inbox.put(message)
        except ConnectionError:
            leave(0)
        except Exception:  # noqa: BLE001 - the edge of a thread: a broken frame ends the process
            traceback.print_exc()
            leave(1)
        leave(0)

    def _beat(self) -> None:
        while True:
            started = self._step_started
            self._outbox.send(Heartbeat(0.0 if started is None else time.monotonic() - started))
            time.sleep(HEARTBEAT_SECONDS)
