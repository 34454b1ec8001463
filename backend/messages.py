"""Messages between the server process and the engine process: msgpack with a schema, never pickle.

How a message is framed on the socket is `frames`'.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from backend.events import End, EngineStatistics, Start, Token
from backend.frames import framed
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan
from backend.request import Request
from backend.standing import Standing
from kvcache.statistics import CacheMap


class Submit(Struct, frozen=True, tag=True):
    """Server to engine: run this request."""

    request: Request


class Cancel(Struct, frozen=True, tag=True):
    """Server to engine: end this request at the next step; unknown ids are ignored."""

    request: str


class Measure(Struct, frozen=True, tag=True):
    """Server to engine: say, between two steps, what the ranks' memory is now. Answered by Measured."""


class Stop(Struct, frozen=True, tag=True):
    """Server to engine: exit now. (Draining is the server's: it stops submitting and waits for the ends.)"""


class Progress(Struct, frozen=True, tag=True):
    """Engine to server, while starting: a stage began or moved on.

    `stage` is one of read, load, warm up (download belongs to the server's side); `total` 0 means not
    countable.
    """

    stage: str
    done: int = 0
    total: int = 0


class Ready(Struct, frozen=True, tag=True):
    """Engine to server: requests are served from now on.

    `weights_bytes` has one entry per rank, `rank_pids` the process of each, `devices` its device as torch
    names it; `statistics` are what there is to tell before the first step. `measured` is each rank's memory after
    loading and warm-up. `standing`: where the ranks are, where that is not all on this machine.
    """

    plan: Plan
    max_context: int
    vocabulary: int
    weights_bytes: tuple[int, ...]
    rank_pids: tuple[int, ...]
    devices: tuple[str, ...]
    statistics: EngineStatistics = EngineStatistics()
    measured: tuple[MeasuredRank, ...] = ()
    standing: Standing | None = None


class StepOutput(Struct, frozen=True, tag=True):
    """Engine to server: what one step brought, in order: starts, tokens, ends; a request's End follows its last Token.

    `cache_map` comes with some steps, at most twice a second; `standing` where it has changed.
    """

    tokens: tuple[Token, ...]
    ends: tuple[End, ...]
    statistics: EngineStatistics
    starts: tuple[Start, ...] = ()
    cache_map: CacheMap | None = None
    standing: Standing | None = None


class Measured(Struct, frozen=True, tag=True):
    """Engine to server: each rank's memory at this moment."""

    ranks: tuple[MeasuredRank, ...]


class StartFailed(Struct, frozen=True, tag=True):
    """Engine to server: start-up ended in a user-facing error; restarting will not help."""

    code: str
    what: str
    why: str = ""
    hint: str = ""


class Lost(Struct, frozen=True, tag=True):
    """Engine to server, as its last word: a device or a rank is gone, so this process ends and another must start."""

    cause: str


class Heartbeat(Struct, frozen=True, tag=True):
    """Engine to server, twice a second from a thread of its own: the process lives.

    `step_seconds` is how long the step in progress has been running; 0 between steps.
    """

    step_seconds: float = 0.0


ToEngine = Submit | Cancel | Measure | Stop
FromEngine = Progress | Ready | StepOutput | Measured | StartFailed | Lost | Heartbeat

encoder = msgspec.msgpack.Encoder()
to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """The message with its length in front, ready for the socket."""
    return framed(encoder.encode(message))
