"""What the measuring process is told and tells, as msgpack frames: 4 bytes of length, then the message. No torch."""

from __future__ import annotations

from typing import BinaryIO

import msgspec
from msgspec import Struct

from backend.accuracy.report import AccuracyReport
from backend.engine_settings import EngineSettings


class AccuracyRequest(Struct, frozen=True, kw_only=True):
    """What to measure; the settings' own KV format plays no part.

    Attributes:
        settings: the model, and where it computes.
        tokens: the longest text; None for as long as model, memory and time allow.
        greedy: tokens to be generated after it, and compared.
        seconds: for measuring, loading aside.
    """

    settings: EngineSettings
    tokens: int | None = None
    greedy: int = 32
    seconds: float = 60.0


class Measuring(Struct, frozen=True, tag=True):
    """A stage, and how far it is; a total of 0 where it cannot be counted."""

    stage: str
    done: int
    total: int


class Measured(Struct, frozen=True, tag=True):
    """The last message of a measurement that succeeded."""

    report: AccuracyReport


class NotMeasured(Struct, frozen=True, tag=True):
    """The last message of one that could not be made: a ShardwiseError's parts."""

    what: str
    why: str
    hint: str
    code: str
    exit_status: int


Message = Measuring | Measured | NotMeasured
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def send(file: BinaryIO, message: Message) -> None:
    body = msgspec.msgpack.encode(message)
    file.write(len(body).to_bytes(4, "big") + body)
    file.flush()


def receive(file: BinaryIO) -> Message | None:
    """The next message; None where the other side has ended, also within a message."""
    head = file.read(4)
    body = file.read(int.from_bytes(head, "big")) if len(head) == 4 else b""
    if not body or len(body) < int.from_bytes(head, "big"):
        return None
    return _decoder.decode(body)
