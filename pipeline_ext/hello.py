"""Hello: the first frame on every line and link, by which who listens knows who comes; strangers get nothing."""

from __future__ import annotations

import hmac
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

HELLO_BYTES = 1024
HELLO_SECONDS = 5.0

LineKind = Literal["orders", "pulse"]
Hello = TypeVar("Hello", "LineHello", "LinkHello")


class StrangerError(ValueError):
    """Who has come does not belong here."""


class LineHello(Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """A worker's, at the engine's door: one for each of its two lines. `pid` counts on its machine."""

    worker: str
    line: LineKind
    pid: int
    secret: bytes


class LinkHello(Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """A stage's, at the next one's listener. Answered by Welcome where the next one takes the link."""

    epoch: int
    stage: int
    secret: bytes


class Welcome(Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """From who listens: the link stands."""

    epoch: int


encoder = msgspec.msgpack.Encoder()
_line_decoder: msgspec.msgpack.Decoder[LineHello] = msgspec.msgpack.Decoder(LineHello)
_link_decoder: msgspec.msgpack.Decoder[LinkHello] = msgspec.msgpack.Decoder(LinkHello)
_welcome_decoder: msgspec.msgpack.Decoder[Welcome] = msgspec.msgpack.Decoder(Welcome)


def read_line_hello(body: bytes | bytearray, secret: bytes) -> LineHello:
    """Raises StrangerError for anything but one with this secret."""
    return _checked(_line_decoder, body, secret)


def read_link_hello(body: bytes | bytearray, secret: bytes) -> LinkHello:
    """Raises StrangerError for anything but one with this secret."""
    return _checked(_link_decoder, body, secret)


def read_welcome(body: bytes | bytearray) -> Welcome:
    """Raises StrangerError for anything else."""
    try:
        return _welcome_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise StrangerError(f"no welcome: {error}") from None


def _checked(decoder: msgspec.msgpack.Decoder[Hello], body: bytes | bytearray, secret: bytes) -> Hello:
    try:
        hello = decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise StrangerError(f"no Hello: {error}") from None
    if not secret or not hmac.compare_digest(hello.secret, secret):
        raise StrangerError("a wrong secret")
    return hello
