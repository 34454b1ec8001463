"""SocketTransport: the Transport over the lines of workers that came to a door, read in the engine's own thread.

orders  what the pipeline sends, and the answers
pulse   the worker's heart; ours each second, from a thread, so that a long step of ours is not taken for death
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time

import msgspec

from pipeline_ext.door import Door
from pipeline_ext.hello import LineKind
from pipeline_ext.messages import Beat, ToStage, encoder, from_stage_decoder
from pipeline_ext.stream import Stream
from pipeline_ext.transport import Arrived, Event, Gone, Heard

BEAT_SECONDS = 1.0


class _Lines:
    """Of one worker, as far as they have come."""

    def __init__(self) -> None:
        self.streams: dict[LineKind, Stream] = {}
        self.pid = 0

    @property
    def whole(self) -> bool:
        return len(self.streams) == 2

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()


class SocketTransport:
    """A Transport. `close` ends all lines and the door."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._lines: dict[str, _Lines] = {}
        # Names are never used again, so who has left does not come back under one.
        self._left: set[str] = set()
        self._by_number: dict[int, tuple[str, Stream]] = {}
        self._poll = select.poll()
        self._poll.register(door.bell, select.POLLIN)
        self._guard = threading.Lock()
        self._pulses: dict[str, Stream] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def now(self) -> float:
        return time.monotonic()

    def poll(self, patience: float) -> list[Event]:
        deadline = time.monotonic() + patience
        while True:
            waiting = any(stream.pending for _, stream in self._by_number.values())
            left = 0.0 if waiting else max(0.0, deadline - time.monotonic())
            events: list[Event] = []
            for number, _ in self._poll.poll(left * 1000):
                self._look(number, events)
            if waiting:
                for number in list(self._by_number):
                    self._look(number, events)
            if events or time.monotonic() >= deadline:
                return events

    def send(self, worker: str, message: ToStage) -> None:
        self.send_encoded(worker, encoder.encode(message))

    def send_encoded(self, worker: str, body: bytes) -> None:
        """`send` for a message that has been encoded, for several workers."""
        lines = self._lines.get(worker)
        if lines is not None and (orders := lines.streams.get("orders")) is not None:
            orders.send(body)

    def drop(self, worker: str) -> None:
        self._left.add(worker)
        self._forget(worker)

    def close(self) -> None:
        """No call follows."""
        self._ended.set()
        self._door.close()
        for worker in list(self._lines):
            self._forget(worker)

    def _look(self, number: int, events: list[Event]) -> None:
        if number == self._door.bell:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(number)
            return self._let_in(events)
        if number not in self._by_number:
            return
        worker, stream = self._by_number[number]
        try:
            open_still = stream.receive()
            while (body := stream.take()) is not None:
                events.append(Heard(worker, from_stage_decoder.decode(body)))
        except (ValueError, msgspec.MsgspecError) as error:
            return self._lose(worker, f"broke the protocol: {error}", events)
        if not open_still:
            self._hear_out(worker, events)
            self._lose(worker, "its line was closed", events)

    def _hear_out(self, worker: str, events: list[Event]) -> None:
        """Its last words, which may lie on the line whose end has not been seen yet."""
        with contextlib.suppress(ValueError, msgspec.MsgspecError):
            for stream in self._lines[worker].streams.values():
                stream.receive()
                while (body := stream.take()) is not None:
                    events.append(Heard(worker, from_stage_decoder.decode(body)))

    def _let_in(self, events: list[Event]) -> None:
        while True:
            try:
                hello, stream = self._door.arrivals.get_nowait()
            except queue.Empty:
                return
            lines = self._lines.setdefault(hello.worker, _Lines())
            if hello.worker in self._left or hello.line in lines.streams:
                stream.close()
                if not lines.streams:
                    del self._lines[hello.worker]
                continue
            lines.streams[hello.line], lines.pid = stream, hello.pid
            self._by_number[stream.fileno()] = hello.worker, stream
            self._poll.register(stream.fileno(), select.POLLIN)
            if lines.whole:
                with self._guard:
                    self._pulses[hello.worker] = lines.streams["pulse"]
                events.append(Arrived(hello.worker, lines.pid))

    def _lose(self, worker: str, cause: str, events: list[Event]) -> None:
        arrived = self._lines[worker].whole
        self.drop(worker)
        if arrived:
            events.append(Gone(worker, cause))

    def _forget(self, worker: str) -> None:
        with self._guard:
            self._pulses.pop(worker, None)
        lines = self._lines.pop(worker, None)
        if lines is None:
            return
        for stream in lines.streams.values():
            number = stream.fileno()
            del self._by_number[number]
            self._poll.unregister(number)
        lines.close()

    def _beat(self) -> None:
        body = encoder.encode(Beat())
        while not self._ended.wait(BEAT_SECONDS):
            with self._guard:
                pulses = list(self._pulses.values())
            for stream in pulses:
                stream.send(body)
