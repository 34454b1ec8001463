"""Messages on the TLS line between the hub and a machine that joins or has joined: msgpack with a schema, in frames.

stranger  AskAuthority ──►  hub  Authority              unverified: the invite's fingerprint decides
stranger  AskToJoin ─────►  hub  Joined | NotJoined     the hub is verified, the stranger shows its token
peer      Hello ─────────►  hub  Welcome | NotWelcome   both are verified; then Beats, until one of them goes
"""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from backend.frames import framed
from backend.hardware.machine import Machine

Text = Annotated[str, Meta(max_length=500)]
Name = Annotated[str, Meta(max_length=64)]
STRANGER_FRAME = 16 * 1024
PEER_FRAME = 4 * 1024 * 1024


class HubMessage(Struct, frozen=True, array_like=True, tag=True):
    """Sent as an array with its type's name in front."""


class AskAuthority(HubMessage, frozen=True):
    """By which authority are you known?"""


class Authority(HubMessage, frozen=True):
    """Its certificate (PEM)."""

    certificate: Annotated[bytes, Meta(max_length=8192)]


class AskToJoin(HubMessage, frozen=True):
    """May I join? With the invite's token, a signing request (PEM) and who asks."""

    token: Annotated[bytes, Meta(max_length=64)]
    request: Annotated[bytes, Meta(max_length=4096)]
    name: Name
    version: Name


class Joined(HubMessage, frozen=True):
    """Yes: the certificate (PEM) of who asked, and what it is called here."""

    certificate: Annotated[bytes, Meta(max_length=8192)]
    name: Name


class NotJoined(HubMessage, frozen=True):
    """No. Why is said only to who has shown a valid token."""

    why: Text


class Hello(HubMessage, frozen=True):
    """A peer is here, or here again."""

    version: Name
    machine: Machine


class RayEntry(HubMessage, frozen=True):
    """Where Ray's head is and what it wants to be shown. `generation` rises with each new head: nodes of an earlier
    one are of no use any more."""

    generation: int
    address: Name
    token: Annotated[str, Meta(max_length=200)]


class Welcome(HubMessage, frozen=True):
    """You belong here."""

    name: Name


class NotWelcome(HubMessage, frozen=True):
    """You do not, any more or with this version. `final`: trying again is of no use."""

    why: Text
    final: bool


class Beat(HubMessage, frozen=True):
    """Each second, from both sides. `memory`: bytes available on the peer; 0 from the hub."""

    memory: int = 0


class MachineNow(HubMessage, frozen=True):
    """A peer's hardware, read anew."""

    machine: Machine


class RayNode(HubMessage, frozen=True):
    """How a peer's Ray node is: empty `trouble` means that it stands. `ports` listen on every address there."""

    generation: int
    trouble: Text
    ports: tuple[int, ...]


class Ping(HubMessage, frozen=True):
    """To be answered at once by a Pong of this number. `load` is there to take time."""

    number: int
    load: bytes = b""


class Pong(HubMessage, frozen=True):
    number: int


class Leaving(HubMessage, frozen=True):
    """A peer wants to go: may it?"""


class Released(HubMessage, frozen=True):
    """Nothing needs you any more. `removed`: you do not belong here any more either."""

    removed: bool


FromStranger = AskAuthority | AskToJoin
ToStranger = Authority | Joined | NotJoined
FromPeer = Hello | Beat | MachineNow | RayNode | Pong | Leaving
ToPeer = Welcome | NotWelcome | RayEntry | Beat | Ping | Released

_encoder = msgspec.msgpack.Encoder()
from_stranger: msgspec.msgpack.Decoder[FromStranger] = msgspec.msgpack.Decoder(FromStranger)
to_stranger: msgspec.msgpack.Decoder[ToStranger] = msgspec.msgpack.Decoder(ToStranger)
from_peer: msgspec.msgpack.Decoder[FromPeer] = msgspec.msgpack.Decoder(FromPeer)
to_peer: msgspec.msgpack.Decoder[ToPeer] = msgspec.msgpack.Decoder(ToPeer)

_Kind = TypeVar("_Kind")


class BadFrameError(ValueError):
    """What came is no message of ours, or too long for one."""


def encoded(message: HubMessage) -> bytes:
    """As a frame."""
    return framed(_encoder.encode(message))


def decoded(decoder: msgspec.msgpack.Decoder[_Kind], body: bytes) -> _Kind:
    """Raises BadFrameError."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadFrameError(str(error)[:200]) from None


async def read_frame(reader: asyncio.StreamReader, most: int) -> bytes | None:
    """The body of the next frame; None where the line has ended. Raises BadFrameError, and OSError where it broke."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        if length > most:
            raise BadFrameError(f"a frame of {length} bytes where {most} are allowed")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
