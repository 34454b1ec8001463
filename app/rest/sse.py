"""AnswerResponse: writes an answer as server-sent events or as one body, and cancels it when the client goes away.

It is plain ASGI: one `send` a chunk, and nothing between the engine's event and the socket but the format.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.rest.answer import Answer, Piece
from app.rest.errors import ApiError, described, error_response, log_failure

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


class Format(Protocol):
    """One API's shape of an answer; belongs to one answer."""

    def opening(self) -> bytes:
        """Events before the first piece."""
        ...

    def event(self, piece: Piece) -> bytes:
        """The event of one piece."""
        ...

    def closing(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> bytes:
        """Events after the last piece, before [DONE]."""
        ...

    def collect(self, piece: Piece) -> None:
        """Keeps a piece for `body`."""
        ...

    def body(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> bytes:
        """The whole answer as JSON."""
        ...


class Places:
    """How many answers there may be at once. A place is taken from before admission to the last byte."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0

    def check(self, count: int) -> None:
        """Refuses `count` more answers where there is no room. A request alone is never refused.

        Raises:
            ApiError: with status 429.
        """
        if self.taken and self.taken + count > self._most:
            raise ApiError(
                f"{self.taken} answers are running or waiting, and {self._most} is the most",
                status=429,
                code="too_many_requests",
            )


class AnswerResponse(Response):
    """An answer on its way to a client.

    Args:
        start: admits the request; what it raises becomes an error response, as nothing has been sent yet.
        shape: how the answer looks.
        stream: events, or one body at the end.
        places, count: where its answers are counted, and how many they are.
        headers: sent beside the usual ones.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Answer]],
        shape: Format,
        *,
        stream: bool,
        places: Places,
        count: int,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__()
        self._own_headers = tuple(headers)
        self._start, self._shape, self._stream = start, shape, stream
        self._places, self._count = places, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._places.taken += self._count
        work = asyncio.ensure_future(self._work(scope, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                if not task.done():
                    task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            self._places.taken -= self._count
        if not work.cancelled() and (error := work.exception()) is not None and not isinstance(error, OSError):
            raise error

    async def _work(self, scope: Scope, send: Send) -> None:
        try:
            answer = await self._start()
            if self._stream:
                await self._send_events(answer, scope, send)
            else:
                await self._send_body(answer, send)
        except OSError:
            raise  # the client is gone
        except Exception as error:  # noqa: BLE001 (the edge of one request)
            _note(error, scope)
            await error_response(error)(scope, _nothing, send)

    async def _send_body(self, answer: Answer, send: Send) -> None:
        shape = self._shape
        async with aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                shape.collect(piece)
        body = shape.body(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += self._own_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_events(self, answer: Answer, scope: Scope, send: Send) -> None:
        """Streams; the status is sent with the first piece, so that what fails before has a status of its own."""
        shape, started = self._shape, False
        try:
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    data = shape.event(piece)
                    if not started:
                        started = True
                        await send(
                            {
                                "type": "http.response.start",
                                "status": 200,
                                "headers": [*_STREAM_HEADERS, *self._own_headers],
                            }
                        )
                        data = shape.opening() + data
                    if data:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            last = shape.closing(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) + DONE
        except OSError:
            raise
        except Exception as error:
            if not started:
                raise
            _note(error, scope)
            last = b"data: " + msgspec.json.encode(described(error)[1]) + b"\n\n"
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _note(error: Exception, scope: Scope) -> None:
    if described(error)[0] == 500:
        log_failure(error, scope.get("path", ""))


async def _disconnected(receive: Receive) -> None:
    with contextlib.suppress(OSError):
        while (await receive())["type"] != "http.disconnect":
            pass


async def _nothing() -> dict[str, str]:
    return {"type": "http.disconnect"}
