"""RunningRequest: the server's record of one request: what was delivered, and what a replay needs."""

from __future__ import annotations

import asyncio
import time

import msgspec

from backend.events import End, EndReason, Start, Token
from backend.request import Request


class LostTokenError(Exception):
    """The engine skipped an index: its answer can no longer be trusted, a replay is due."""


class RunningRequest:
    """One request from its submission to its End, over any number of engine processes.

    Events wait in a queue for a reader that may be slow. The queue is bounded by the answer itself, at most
    `max_tokens` small values, which the server admits.

    Attributes:
        suspicions: deaths of the engine in a row at which this was running and had brought no token since
            the last. sent: the engine process of this moment has it. progressed: it brought a token since
            it was last sent.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.suspicions = 0
        self.sent = False
        self.progressed = False
        self._submitted = time.monotonic()
        self._output = list(request.prior)
        self._started = False
        self._events: asyncio.Queue[Start | Token | End] = asyncio.Queue()

    async def next_event(self) -> Start | Token | End:
        return await self._events.get()

    def started(self, start: Start) -> None:
        """Tells the reader of the first admission. Later ones are replays, which find their own tokens cached."""
        if self._started:
            return
        self._started = True
        cached = max(0, min(start.cached_tokens, len(self.request.prompt)))
        self._events.put_nowait(Start(start.request, cached))

    def deliver(self, token: Token) -> bool:
        """Hands a token to the reader, each index once; False where it was delivered before.

        Raises:
            LostTokenError: where an index before it is missing.
        """
        expected = len(self._output)
        if token.index < expected:
            return False
        if token.index > expected:
            raise LostTokenError(f"token {token.index} came where {expected} was due")
        self._output.append(token.token)
        self.progressed = True
        self.suspicions = 0
        self._events.put_nowait(token)
        return True

    def end(self, end: End) -> None:
        self._events.put_nowait(end)

    def engine_died(self) -> None:
        """Notes a death of the engine; only a request that it had, and that brought nothing, is suspect."""
        if self.sent and not self.progressed:
            self.suspicions += 1
        self.sent = self.progressed = False

    def replay(self) -> Request:
        """The request as it has to be sent now: with the tokens it has, and the time it has left."""
        left = None if self.request.timeout is None else max(0.001, self.request.timeout - self.age)
        return msgspec.structs.replace(self.request, prior=tuple(self._output), timeout=left)

    @property
    def age(self) -> float:
        """Seconds since submission."""
        return time.monotonic() - self._submitted

    @property
    def overdue(self) -> bool:
        return self.request.timeout is not None and self.age >= self.request.timeout

    def finished(self) -> EndReason | None:
        """Why nothing is left to compute, where an End was lost with an engine after the last token."""
        sampling = self.request.sampling
        if len(self._output) >= sampling.max_tokens:
            return "length"
        if self._output and self._output[-1] in sampling.stop_tokens:
            return "stop"
        return None
