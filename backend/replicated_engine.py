"""ReplicatedEngine: several engines of one model seen as one: shares requests among them, and moves those of one that
stays away to another, where they go on from their tokens. Reviving an engine is its supervisor's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress

import msgspec
import structlog

from backend.engine_client import EngineClient, EngineStatus
from backend.errors import EngineUnavailableError
from backend.events import End, EngineStatistics, Start, Token
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan
from backend.replica_choice import PrefixHomes, choose
from backend.replica_statistics import summed
from backend.request import Request
from kvcache.statistics import CacheMap

# A restart takes less, as a rule: its own engine finds more of a request's pages than another would.
AWAY_SECONDS = 20.0
LOOK_SECONDS = 0.1

log = structlog.get_logger("shardwise.replicas")


class _Replica:
    """One engine, what runs there through us, and since when it is away."""

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine
        self.running = 0
        self.waits: set[asyncio.Timeout] = set()
        self.away_since: float | None = None

    @property
    def ready(self) -> bool:
        status = self.engine.status()
        return status.state == "ready" and all(rank.state != "lost" for rank in status.ranks)

    @property
    def failed(self) -> bool:
        return self.engine.status().state == "failed"


class _Progress:
    """What the reader has of one answer, wherever it was computed."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._began = time.monotonic()
        self._tokens = list(request.prior)
        self._started = False

    @property
    def left(self) -> float | None:
        """Seconds until the deadline."""
        timeout = self._request.timeout
        return None if timeout is None else timeout - (time.monotonic() - self._began)

    @property
    def begun(self) -> bool:
        return self._started or len(self._tokens) > len(self._request.prior)

    def rest(self) -> Request:
        """The request as another engine takes it up."""
        left = self.left
        return msgspec.structs.replace(
            self._request, prior=tuple(self._tokens), timeout=None if left is None else max(0.001, left)
        )

    def is_new(self, event: Start | Token) -> bool:
        """Notes what the reader gets; False for what it has."""
        if isinstance(event, Start):
            new, self._started = not self._started, True
            return new
        if event.index != len(self._tokens):
            return False
        self._tokens.append(event.token)
        return True

    def finished(self) -> End | None:
        """The end that was lost with an engine after its last token."""
        sampling, tokens = self._request.sampling, self._tokens
        if len(tokens) >= sampling.max_tokens:
            return End(self._request.id, "length")
        if len(tokens) > sampling.min_tokens and tokens[-1] in sampling.stop_tokens:
            return End(self._request.id, "stop")
        return None


class ReplicatedEngine:
    """An EngineClient over several, which it starts and stops. Plan, pages' map and measurements are one ready one's.

    Args:
        away: seconds that requests wait for an engine that is not ready, before they move to one that is.
    """

    def __init__(self, engines: Sequence[EngineClient], away: float = AWAY_SECONDS) -> None:
        self._replicas = [_Replica(engine) for engine in engines]
        self._away = away
        self._homes = PrefixHomes()
        self._draining = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        return self._replicas[0].engine.model

    @property
    def plan(self) -> Plan | None:
        return self._first.engine.plan

    @property
    def max_context(self) -> int | None:
        """What all can do that have told: a request may have to move to any of them."""
        known = [one.engine.max_context for one in self._replicas]
        return min((context for context in known if context is not None), default=None)

    @property
    def _first(self) -> _Replica:
        """The first that is ready, else the first that has a plan, else the first."""
        planned = (one for one in self._replicas if one.engine.plan is not None)
        ready = (one for one in self._replicas if one.ready)
        return next(ready, None) or next(planned, None) or self._replicas[0]

    def status(self) -> EngineStatus:
        """Ready as long as one of them is; each one's own status in `replicas`."""
        each = tuple(one.engine.status() for one in self._replicas)
        alive = [one for one in each if one.state != "failed"]
        best = next((one for one in alive if one.state == "ready"), (alive or each)[0])
        listed = [rank for one in each for rank in one.ranks]
        ranks = tuple(msgspec.structs.replace(rank, rank=number) for number, rank in enumerate(listed))
        errors = [f"Copy {number}: {one.error}" for number, one in enumerate(each, 1) if one.error]
        return msgspec.structs.replace(
            best,
            state="draining" if self._draining and best.state != "failed" else best.state,
            # One that is being mended does not make all of it lost.
            ranks=tuple(rank for rank in ranks if rank.state != "lost") if best.state == "ready" else ranks,
            restarts=sum(one.restarts for one in each),
            error="\n".join(errors),
            replicas=each,
        )

    def statistics(self) -> EngineStatistics:
        return summed([one.engine.statistics() for one in self._replicas])

    def cache_map(self) -> CacheMap | None:
        return self._first.engine.cache_map()

    async def measure(self) -> tuple[MeasuredRank, ...]:
        return await self._first.engine.measure()

    async def wait_ready(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the contract has it
        """True once one of them serves."""
        waits = {asyncio.ensure_future(one.engine.wait_ready(timeout)) for one in self._replicas}
        try:
            while waits:
                done, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if any(wait.result() for wait in done):
                    return not self._draining
            return False
        finally:
            for wait in waits:
                wait.cancel()

    async def generate(self, request: Request) -> AsyncGenerator[Start | Token | End]:
        """See `EngineClient.generate`."""
        if self._draining:
            raise EngineUnavailableError("The server is shutting down", hint="Try again later.")
        progress = _Progress(request)
        while (end := progress.finished()) is None:
            try:
                number = await self._place(request, progress)
            except EngineUnavailableError as error:
                if not progress.begun:
                    raise
                end = End(request.id, "error", str(error))
                break
            if number is None:
                end = End(request.id, "deadline")
                break
            async with aclosing(self._on(number, progress)) as events:
                async for event in events:
                    if not isinstance(event, End):
                        yield event
                    else:
                        end = event
            if end is not None:
                break
            log.warning("request moves to another engine", request=request.id, away_from=number)
        yield end

    async def _on(self, number: int, progress: _Progress) -> AsyncGenerator[Start | Token | End]:
        """What is new of the answer as this replica computes it; ends without an End where another has to go on."""
        replica, rest = self._replicas[number], progress.rest()
        replica.running += 1
        try:
            async with aclosing(replica.engine.generate(rest)) as events:  # pyright: ignore[reportArgumentType]
                while True:
                    event = await self._next(replica, events)
                    if isinstance(event, End):
                        if event.reason != "error" or not replica.failed or not self._others_serve(replica):
                            yield event
                        return
                    if progress.is_new(event):
                        yield event
        except TimeoutError:
            return
        except EngineUnavailableError as error:
            if self._others_serve(replica):
                return
            if not progress.begun:
                raise
            yield End(rest.id, "error", str(error))
        finally:
            replica.running -= 1

    async def _next(self, replica: _Replica, events: AsyncIterator[Start | Token | End]) -> Start | Token | End:
        """The next event. Raises TimeoutError where `_watch` finds that the replica stays away."""
        async with asyncio.timeout(None) as wait:
            replica.waits.add(wait)
            try:
                return await anext(events)
            finally:
                replica.waits.discard(wait)

    def _others_serve(self, replica: _Replica) -> bool:
        """Whether a request that leaves this one could go on, now or soon."""
        return any(one is not replica and not one.failed for one in self._replicas) and not self._draining

    async def _place(self, request: Request, progress: _Progress) -> int | None:
        """The replica for a request, once one is ready; None where its deadline came first.

        Raises EngineUnavailableError where all have failed.
        """
        while True:
            running = [one.running if one.ready else None for one in self._replicas]
            number = choose(running, self._homes.find(request.cache_salt, request.prompt))
            if number is not None:
                self._homes.note(request.cache_salt, request.prompt, number)
                return number
            if all(one.failed for one in self._replicas) or self._draining:
                raise EngineUnavailableError(f"All engines of {self.model} have failed", self.status().error)
            if (left := progress.left) is not None and left <= 0:
                return None
            await asyncio.sleep(LOOK_SECONDS)

    async def start(self) -> None:
        await asyncio.gather(*(one.engine.start() for one in self._replicas))
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name=f"replicas of {self.model}")

    async def drain(self) -> None:
        self._draining = True
        await asyncio.gather(*(one.engine.drain() for one in self._replicas))

    async def stop(self) -> None:
        self._draining = True
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        await asyncio.gather(*(one.engine.stop() for one in self._replicas))

    async def _watch(self) -> None:
        """Sends requests away from replicas that have been away for too long, while another one is ready."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for one in self._replicas:
                one.away_since = None if one.ready else one.away_since or now
            if any(one.ready for one in self._replicas):
                self._send_away(now)

    def _send_away(self, now: float) -> None:
        soon = asyncio.get_running_loop().time()
        for one in self._replicas:
            if one.away_since is not None and now - one.away_since >= self._away:
                for wait in tuple(one.waits):
                    wait.reschedule(soon)
