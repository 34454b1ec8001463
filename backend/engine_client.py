"""EngineClient: the server's side of one engine, asynchronous. Spawning and reviving it is the supervisor's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

from msgspec import Struct

from backend.events import End, EngineStatistics, Start, Token
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan
from backend.request import Request
from kvcache.statistics import CacheMap

EngineState = Literal["starting", "ready", "restarting", "draining", "failed"]


class StageTime(Struct, frozen=True):
    """A start-up stage (read, load, warm up): seconds it took so far, and bytes done of total where countable."""

    stage: str
    seconds: float
    done: int
    total: int
    finished: bool


class RankStatus(Struct, frozen=True):
    """One rank. `state` is the engine's, or lost while the rank is being replaced; `peer` names its machine, empty for
    this one, and `pid` counts there."""

    rank: int
    pid: int
    device: str
    state: str
    weights_bytes: int
    stage: int = 0
    peer: str = ""


class EngineStatus(Struct, frozen=True):
    """A snapshot for `/health` and the faces. `error` is what a person should read when `state` is failed, or why the
    engine is being started again or parts of it replaced, with process ids. `trouble` is what is wrong with a rank,
    also where tokens flow nevertheless. `replicas` are those of several engines that share requests."""

    model: str
    state: EngineState
    pid: int | None
    ranks: tuple[RankStatus, ...]
    stages: tuple[StageTime, ...]
    restarts: int
    error: str = ""
    replicas: tuple[EngineStatus, ...] = ()
    trouble: str = ""


class EngineClient(Protocol):
    """One engine as the server sees it. All methods run on the server's event loop and none blocks it."""

    @property
    def model(self) -> str: ...

    def status(self) -> EngineStatus: ...

    def statistics(self) -> EngineStatistics:
        """The newest snapshot; counters go on over restarts of the engine."""
        ...

    def cache_map(self) -> CacheMap | None:
        """What the pages of the engine of this moment hold; None until it has told."""
        ...

    async def measure(self) -> tuple[MeasuredRank, ...]:
        """Each rank's memory now, or as last told where the engine does not get round to it soon: a long step runs.

        Empty while no engine is ready.
        """
        ...

    @property
    def plan(self) -> Plan | None:
        """The Plan in force; None until the engine was first ready."""
        ...

    @property
    def max_context(self) -> int | None: ...

    async def wait_ready(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """True once requests are served; False after `timeout` seconds or when the engine has failed."""
        ...

    def generate(self, request: Request) -> AsyncIterator[Start | Token | End]:
        """Runs a request: its Tokens in order of index, each once, then exactly one End, also over engine restarts.

        At most one Start comes, before the first Token: that of the first admission, whatever a replay finds cached.
        Closing the iterator early (`aclose`) cancels the request; its pages are free after the next step.

        Raises:
            EngineUnavailableError: at the first step, where the engine is draining or failed. While it is starting
                or restarting the request waits.
        """
        ...

    async def start(self) -> None:
        """Spawns the engine process and returns at once."""
        ...

    async def drain(self) -> None:
        """Refuses new requests and returns when the running ones have ended."""
        ...

    async def stop(self) -> None:
        """Ends the engine process; running requests end as cancelled. Leaves no child behind."""
        ...
