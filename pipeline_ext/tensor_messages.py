"""Messages between a `tensor_server` and who fetches from it: small frames with a schema, and raw bytes behind a Piece.

    Open(secret) ──►        ◄── Opened | Denied
    Ask(file, start, length) ──►   (several may be under way)   ◄── Piece, then `length` raw bytes | Denied

Files are numbers: the offer's weights first, then its texts. Nothing names a path.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

from backend.frames import framed

# One range: long enough that hashing and a link's delay do not count, short enough that little is fetched again.
MOST_RANGE_BYTES = 8 << 20
MOST_FRAME_BYTES = 4096
MOST_SECRET_BYTES = 256
SILENCE_SECONDS = 30.0


class Message(Struct, frozen=True, array_like=True, tag=True):
    """Sent as an array with its type's name in front."""


class Open(Message, frozen=True):
    """To a server, first of all: the engine's secret."""

    secret: bytes


class Ask(Message, frozen=True):
    """To a server: these bytes of this file, at most MOST_RANGE_BYTES."""

    file: int
    start: int
    length: int


class Opened(Message, frozen=True):
    """From a server: ask."""


class Piece(Message, frozen=True):
    """From a server: so many raw bytes follow, of which this is the SHA-256."""

    length: int
    sha256: bytes


class Denied(Message, frozen=True):
    """From a server, as its last word: why."""

    text: str


encoder = msgspec.msgpack.Encoder()
to_server_decoder: msgspec.msgpack.Decoder[Open | Ask] = msgspec.msgpack.Decoder(Open | Ask)
from_server_decoder: msgspec.msgpack.Decoder[Opened | Piece | Denied] = msgspec.msgpack.Decoder(Opened | Piece | Denied)


class Stream(Protocol):
    """Of a socket, TLS or not, what is used here."""

    def recv_into(self, buffer: memoryview, /) -> int: ...

    def sendall(self, data: bytes, /) -> None: ...


def send(stream: Stream, message: Message) -> None:
    """Sends one frame."""
    stream.sendall(framed(encoder.encode(message)))


def receive(stream: Stream) -> bytes:
    """The body of the next frame.

    Raises ValueError for one longer than any message, ConnectionError where the other side has gone.
    """
    length = int.from_bytes(exactly(stream, 4), "big")
    if length > MOST_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes; at most {MOST_FRAME_BYTES} are allowed")
    return bytes(exactly(stream, length))


def exactly(stream: Stream, count: int) -> bytearray:
    """So many bytes. Raises ConnectionError where the other side has gone before."""
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        got = stream.recv_into(rest)
        if not got:
            raise ConnectionError("the other side closed the line")
        rest = rest[got:]
    return data
