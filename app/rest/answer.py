"""Answers: from the engine's tokens to pieces of text per choice. Bytes on the wire are the formats' and `sse`'s."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from app.rest.admission import Admitted
from app.rest.errors import ApiError
from app.rest.metrics import ModelMetrics
from app.rest.served import ServedEngine
from backend.errors import EngineUnavailableError
from backend.events import End, Start, Token
from backend.request import Request
from backend.stop_strings import StopStrings

FinishReason = Literal["stop", "length"]


@dataclass(slots=True)
class Piece:
    """What one token adds to one choice. `token` is None where it has no place in the answer (an end token)."""

    index: int
    text: str
    token: Token | None
    reason: FinishReason | None = None


class Answer:
    """All choices of one admitted request, running. Closing `pieces` early cancels what still runs."""

    def __init__(self, admitted: Admitted, served: ServedEngine, metrics: ModelMetrics) -> None:
        self._admitted, self._served, self._metrics = admitted, served, metrics
        self.completion_tokens = 0
        self._cached: dict[int, int] = {}

    @property
    def prompt_tokens(self) -> int:
        return self._admitted.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that no choice had to compute: of each prompt, what its least lucky choice found."""
        return sum(self._cached.values())

    def _started(self, index: int, start: Start) -> None:
        prompt = index // self._admitted.copies
        self._cached[prompt] = min(start.cached_tokens, self._cached.get(prompt, start.cached_tokens))

    def pieces(self) -> AsyncGenerator[Piece]:
        """The pieces of all choices as they come; each choice's last has a reason.

        Raises:
            EngineUnavailableError, ApiError: the engine cannot run it, or ended it with an error.
        """
        requests = self._admitted.requests
        # The usual single choice passes through nothing in between.
        return self._choice(0, requests[0]) if len(requests) == 1 else self._merged(requests)

    async def _merged(self, requests: Sequence[Request]) -> AsyncGenerator[Piece]:
        # Room for a few pieces a choice: a slow reader stops the pumps here, and the engine's side is bounded by
        # max_tokens.
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(4 * len(requests))
        pumps = [asyncio.ensure_future(self._pump(index, request, queue)) for index, request in enumerate(requests)]
        try:
            running = len(pumps)
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, index: int, request: Request, queue: asyncio.Queue[Piece | Exception | None]) -> None:
        try:
            async with aclosing(self._choice(index, request)) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
        except Exception as error:  # noqa: BLE001 (handed over to the reader, who raises it)
            await queue.put(error)
        else:
            await queue.put(None)

    async def _choice(self, index: int, request: Request) -> AsyncGenerator[Piece]:
        admitted, clock = self._admitted, self._metrics.begin()
        text = _ChoiceText(admitted, request, self._served)
        outcome = "abort"
        try:
            async with aclosing(_generated(self._served, request)) as events:
                async for event in events:
                    if type(event) is Token:
                        self.completion_tokens += 1
                        clock.token(perf_counter())
                        piece = text.feed(index, event)
                        if piece.reason is not None:
                            outcome = piece.reason
                            yield piece
                            return
                        if piece.text or piece.token is not None:
                            yield piece
                    elif isinstance(event, Start):
                        self._started(index, event)
                    elif isinstance(event, End):
                        outcome = "error"
                        reason = _finish_reason(event)
                        outcome = reason
                        yield Piece(index, text.rest(), None, reason)
                        return
            raise EngineUnavailableError("The engine ended without finishing the answer")
        finally:
            clock.end(outcome)


def _generated(served: ServedEngine, request: Request) -> Any:
    """The engine's events, as what they are: an asynchronous generator, which can be closed."""
    return served.engine.generate(request)


def _finish_reason(end: End) -> FinishReason:
    if end.reason in ("stop", "length"):
        return end.reason
    if end.reason == "cancelled":
        raise EngineUnavailableError("The engine was stopped before the answer was finished")
    if end.reason == "deadline":
        raise ApiError("The answer was not finished within its timeout", status=504, code="timeout", param="timeout")
    raise ApiError(end.message or "The engine failed at this request", status=500, code="engine_error")


class _ChoiceText:
    """The text of one choice: characters, end tokens, stop strings."""

    def __init__(self, admitted: Admitted, request: Request, served: ServedEngine) -> None:
        self._detokenizer = served.tokenizer.detokenizer(
            skip_special_tokens=admitted.skip_special_tokens, continues=admitted.continues
        )
        self._stops = StopStrings(admitted.stop_strings, admitted.include_stop) if admitted.stop_strings else None
        self._end_tokens = frozenset(request.sampling.stop_tokens)
        self._silent = request.sampling.min_tokens
        self._include_stop = admitted.include_stop

    def feed(self, index: int, token: Token) -> Piece:
        if token.token in self._end_tokens and not self._include_stop:
            return Piece(index, "", None)
        text = self._detokenizer.feed(token.token)
        if self._stops is None:
            return Piece(index, text, token)
        # Before min_tokens, stop strings do not count.
        if token.index < self._silent:
            return Piece(index, text, token)
        text = self._stops.feed(text)
        return Piece(index, text, token, "stop" if self._stops.matched is not None else None)

    def rest(self) -> str:
        text = self._detokenizer.flush()
        return text if self._stops is None else self._stops.feed(text) + self._stops.flush()
