"""Workers and strangers for tests of the door and the transport, in this process."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from pipeline_ext.dial import say
from pipeline_ext.door import Door
from pipeline_ext.hello import LineHello, LineKind
from pipeline_ext.messages import FromStage, encoder
from pipeline_ext.socket_transport import SocketTransport
from pipeline_ext.stream import Stream
from pipeline_ext.transport import Event

SECRET = b"a secret of 32 bytes for testing"
Connect = Callable[[], socket.socket]


def unix_connect(path: str) -> Connect:
    def connect() -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.connect(path)
        return peer

    return connect


class FakeWorker:
    """The lines of a worker as they come to a door."""

    def __init__(self, connect: Connect, name: str, secret: bytes = SECRET) -> None:
        self._connect, self.name, self._secret = connect, name, secret
        self.orders: Stream | None = None
        self.pulse: Stream | None = None

    def come(self) -> FakeWorker:
        self.orders, self.pulse = self.line("orders"), self.line("pulse")
        return self

    def line(self, kind: LineKind) -> Stream:
        stream = Stream(self._connect())
        stream.handshake(5)
        say(stream, LineHello(self.name, kind, 4321, self._secret))
        return stream

    def tell(self, message: FromStage) -> None:
        if self.orders is None:
            raise RuntimeError("it has not come")
        self.orders.send(encoder.encode(message))

    def close(self) -> None:
        for stream in (self.orders, self.pulse):
            if stream is not None:
                stream.close()


def until(transport: SocketTransport, done: Callable[[list[Event]], bool], seconds: float = 10.0) -> list[Event]:
    """All events until these say that it is enough; fails where they do not in time."""
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    while not done(events):
        assert time.monotonic() < deadline, events
        events += transport.poll(0.2)
    return events


def open_door(folder: Path) -> Door:
    return Door(SECRET, folder=folder)
