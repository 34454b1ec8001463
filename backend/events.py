"""Events: what the engine tells about running requests and itself, as immutable plain data."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from kvcache.statistics import CacheStatistics

EndReason = Literal["stop", "length", "cancelled", "deadline", "error"]


class Token(Struct, frozen=True, array_like=True):
    """One output token. `index` counts from 0 over the whole answer, `prior` tokens included.

    `logprob` and `top` (token, logprob; most likely first) are set where `Sampling.logprobs` asked. They are of the
    model's own distribution after penalties and bias, before temperature and filters.
    """

    request: str
    index: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class End(Struct, frozen=True, array_like=True):
    """The one terminal event of a request. A stop token that ended it was reported as a Token just before.

    `reason` "length" is `max_tokens` or the context; "error" carries a `message` for the client.
    """

    request: str
    reason: EndReason
    message: str = ""


class Start(Struct, frozen=True, array_like=True):
    """A request was admitted for the first time; `cached_tokens` of its prompt are served from cached pages."""

    request: str
    cached_tokens: int


class EngineStatistics(Struct, frozen=True):
    """A snapshot of the engine after a step; counters run from the engine's start.

    `steps_seconds` and `scheduling_seconds` let a reader compute the scheduler's share of a step.
    """

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    scheduling_seconds: float = 0.0
    nan_requests: int = 0
    cache: CacheStatistics = CacheStatistics()
