"""DisaggregatedEngine: one engine computes prompts, another goes on with the answers, seen as one engine.

    request ─► prefill engine: prompt, first token ──pages, signed──► decode engine: the rest of the answer

So a long prompt does not lengthen the pauses between the tokens of others: their steps have no prompt in them. (By
itself this makes no server faster: DistServe, arXiv 2401.09670, and vLLM's documentation.) How pages get across is
`kvcache.hand_over`'s; a page that does not is computed again by the decode engine, which also takes whole requests
while the prefill engine cannot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec

from backend.engine_client import EngineClient, EngineStatus
from backend.errors import EngineUnavailableError
from backend.events import End, EngineStatistics, Start, Token
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan
from backend.request import Request
from kvcache.statistics import CacheMap

# Prompts of fewer tokens have at most one page to hand over, and are computed in no time anywhere.
SHORTEST_PROMPT = 32


class DisaggregatedEngine:
    """An EngineClient over two, which it starts and stops. Plan, pages and measurements are the decode engine's."""

    def __init__(self, prefill: EngineClient, decode: EngineClient, close: Callable[[], None] = lambda: None) -> None:
        """close: called when both have stopped."""
        self._prefill, self._decode, self._close = prefill, decode, close
        self._handed_tokens = 0

    @property
    def model(self) -> str:
        return self._decode.model

    @property
    def plan(self) -> Plan | None:
        return self._decode.plan

    @property
    def max_context(self) -> int | None:
        """What both can do."""
        known = [one.max_context for one in (self._prefill, self._decode) if one.max_context is not None]
        return min(known, default=None)

    def status(self) -> EngineStatus:
        """The decode engine's state, which decides whether requests are served; the ranks and restarts of both."""
        decode, prefill = self._decode.status(), self._prefill.status()
        first = len(decode.ranks)
        ranks = (*decode.ranks, *(msgspec.structs.replace(one, rank=first + one.rank) for one in prefill.ranks))
        error = decode.error or (prefill.error and f"The engine for prompts: {prefill.error}")
        return msgspec.structs.replace(decode, ranks=ranks, restarts=decode.restarts + prefill.restarts, error=error)

    def statistics(self) -> EngineStatistics:
        """Requests and tokens of both, each prompt counted once; the decode engine's pages and times."""
        decode, prefill = self._decode.statistics(), self._prefill.statistics()
        return msgspec.structs.replace(
            decode,
            running=decode.running + prefill.running,
            waiting=decode.waiting + prefill.waiting,
            prompt_tokens=max(0, decode.prompt_tokens - self._handed_tokens) + prefill.prompt_tokens,
            generation_tokens=decode.generation_tokens + prefill.generation_tokens,
            preemptions=decode.preemptions + prefill.preemptions,
            nan_requests=decode.nan_requests + prefill.nan_requests,
        )

    def cache_map(self) -> CacheMap | None:
        return self._decode.cache_map()

    async def measure(self) -> tuple[MeasuredRank, ...]:
        return await self._decode.measure()

    async def wait_ready(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the contract has it
        return await self._decode.wait_ready(timeout)

    async def generate(self, request: Request) -> AsyncGenerator[Start | Token | End]:
        """See `EngineClient.generate`."""
        if not self._goes_apart(request):
            async with aclosing(self._decode.generate(request)) as events:  # pyright: ignore[reportArgumentType]
                async for event in events:
                    yield event
            return
        began, first, end = time.monotonic(), None, None
        async with aclosing(self._prefill.generate(_prompt_of(request))) as events:  # pyright: ignore[reportArgumentType]
            async for event in events:
                if isinstance(event, End):
                    end = event
                else:
                    first = event.token if isinstance(event, Token) else first
                    yield event
        if end is None or first is None or end.reason != "length" or request.sampling.max_tokens == 1:
            yield end or End(request.id, "error", "The engine for prompts ended without an answer.")
            return
        self._handed_tokens += len(request.prompt)
        async for event in self._go_on(request, first, time.monotonic() - began):
            yield event

    def _goes_apart(self, request: Request) -> bool:
        """Whether a request begins at the prefill engine."""
        if request.prior or len(request.prompt) < SHORTEST_PROMPT:
            return False
        return self._prefill.status().state == "ready" and self._decode.status().state in ("ready", "restarting")

    async def _go_on(self, request: Request, first: int, spent: float) -> AsyncGenerator[Token | End]:
        """The answer behind its first token. Its beginning has been told."""
        left = None if request.timeout is None else max(0.001, request.timeout - spent)
        rest = msgspec.structs.replace(request, prior=(first,), timeout=left)
        try:
            async with aclosing(self._decode.generate(rest)) as events:  # pyright: ignore[reportArgumentType]
                async for event in events:
                    if not isinstance(event, Start):
                        yield event
        except EngineUnavailableError as error:
            # Too late to refuse it: the reader has its first token.
            yield End(request.id, "error", str(error))

    async def start(self) -> None:
        await asyncio.gather(self._prefill.start(), self._decode.start())

    async def drain(self) -> None:
        """The prefill engine first: what it hands over is still taken."""
        await self._prefill.drain()
        await self._decode.drain()

    async def stop(self) -> None:
        await asyncio.gather(self._prefill.stop(), self._decode.stop())
        self._close()


def _prompt_of(request: Request) -> Request:
    """What the prefill engine does of it: the prompt and one token, whose index decides how it is drawn."""
    sampling = msgspec.structs.replace(request.sampling, max_tokens=1)
    return msgspec.structs.replace(request, sampling=sampling, hand_over=request.sampling.max_tokens > 1)
