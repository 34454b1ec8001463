"""An EngineClient in this process that keeps the contract's promises: deterministic tokens, delays, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from backend.engine_client import EngineState, EngineStatus, RankStatus, StageTime
from backend.errors import EngineUnavailableError
from backend.events import End, EngineStatistics, Start, Token
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan
from backend.request import Request
from kvcache.statistics import CacheMap, CacheStatistics


def repeat_prompt(request: Request, index: int) -> int:
    """The default answer: the prompt's tokens over and over, moved by the seed where sampling is random."""
    shift = 0 if request.sampling.greedy else request.sampling.seed
    return request.prompt[(index + shift) % len(request.prompt)]


@dataclass
class FakeEngine:
    """Answers with `choose(request, index)`; what it has seen is kept for tests."""

    model: str = "fake"
    max_context: int | None = 1024
    state: EngineState = "ready"
    choose: Callable[[Request, int], int] = repeat_prompt
    first_delay: float = 0.0
    delay: float = 0.0
    waiting: asyncio.Event | None = None
    fail_after: int | None = None
    end: End | None = None
    error: str = ""
    plan: Plan | None = None
    measured: tuple[MeasuredRank, ...] = ()
    requests: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    generated: int = 0
    remembers: bool = False
    cache: CacheStatistics | None = None
    map: CacheMap | None = None
    seen: set[tuple[bytes, tuple[int, ...]]] = field(default_factory=set)

    def status(self) -> EngineStatus:
        ranks = (RankStatus(0, 4321, "cpu", self.state, 1000),)
        return EngineStatus(self.model, self.state, 1234, ranks, (StageTime("load", 0.5, 10, 10, True),), 2, self.error)

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            running=len(self.running),
            generation_tokens=self.generated,
            cache=self.cache or CacheStatistics(pages_total=100, pages_used=len(self.running)),
        )

    def cache_map(self) -> CacheMap | None:
        return self.map

    async def measure(self) -> tuple[MeasuredRank, ...]:
        return self.measured

    async def wait_ready(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 (the contract's)
        return self.state == "ready"

    async def generate(self, request: Request) -> AsyncIterator[Start | Token | End]:
        if self.state in ("draining", "failed"):
            raise EngineUnavailableError(f"The engine is {self.state}", self.error)
        if request.id in self.running:
            raise ValueError(f"{request.id} is running")
        self.requests.append(request)
        self.running.add(request.id)
        try:
            async for event in self._events(request):
                if isinstance(event, End):
                    self.ended.append(request.id)
                yield event
        finally:
            self.running.discard(request.id)
            if request.id not in self.ended:
                self.cancelled.append(request.id)

    async def _events(self, request: Request) -> AsyncIterator[Start | Token | End]:
        if self.waiting is not None:
            await self.waiting.wait()
        await asyncio.sleep(self.first_delay)
        yield Start(request.id, self._cached(request))
        sampling = request.sampling
        room = (self.max_context or 0) - len(request.prompt)
        for index in range(len(request.prior), min(sampling.max_tokens, room)):
            if index == self.fail_after:
                yield self.end or End(request.id, "error", "the logits were not numbers")
                return
            # Gives way to others even without a delay, as a step of the engine does.
            await asyncio.sleep(self.delay)
            token = self.choose(request, index)
            top = tuple((token + offset, -1.0 - offset) for offset in range(sampling.logprobs or 0))
            self.generated += 1
            yield Token(request.id, index, token, None if sampling.logprobs is None else -0.5, top)
            if token in sampling.stop_tokens and index >= sampling.min_tokens:
                yield End(request.id, "stop")
                return
        yield End(request.id, "length")

    def _cached(self, request: Request) -> int:
        """All but the last token of a prompt that this salt has brought before."""
        known = (request.cache_salt, request.prompt)
        found = len(request.prompt) - 1 if self.remembers and known in self.seen else 0
        self.seen.add(known)
        return found

    async def start(self) -> None:
        self.state = "ready"

    async def drain(self) -> None:
        self.state = "draining"
        while self.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.state = "failed"
