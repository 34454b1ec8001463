"""LimitMiddleware: how much a request may send, and how slowly: headers, body, nesting, compression. Plain ASGI.

The body is read here once, whole and within its bounds; what follows gets it in one piece.
"""

from __future__ import annotations

import asyncio
import re
from itertools import accumulate

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.rest.errors import ApiError, error_response
from app.rest.settings import RestSettings

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_MAX_PATH = 8192


class LimitMiddleware:
    """Refuses what is too large, too deep or too slow."""

    def __init__(self, app: ASGIApp, settings: RestSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_head(scope)
            body = await self._read(receive)
            if body is None:
                return
            check_json(body, self._settings)
        except ApiError as error:
            # What may still come of the body is not read: the connection is of no more use.
            await error_response(error, {"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    def _check_head(self, scope: Scope) -> None:
        settings, headers = self._settings, scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > settings.header_count or size > settings.header_bytes:
            raise ApiError("The request's headers are too large", status=431)
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > _MAX_PATH:
            raise ApiError("The request's path is too long", status=414)
        for name, value in headers:
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise ApiError("Compressed bodies are not taken", status=415)
            if name == b"content-length" and (not value.isdigit() or int(value[:20]) > settings.body_bytes):
                raise self._too_large()

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where the client went away."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._settings.body_bytes:
                        raise self._too_large()
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(f"The body did not arrive within {self._settings.body_seconds:g} s", status=408) from None

    def _too_large(self) -> ApiError:
        return ApiError(f"The body is longer than {self._settings.body_bytes} bytes", status=413)


def check_json(body: bytes, settings: RestSettings) -> None:
    """Refuses JSON that is nested too deep or has too many lists and objects; in linear time.

    Raises:
        ApiError: it is refused.
    """
    opening = body.count(b"[") + body.count(b"{")
    if opening <= settings.json_depth:
        return
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    if brackets.count(b"[") + brackets.count(b"{") > settings.json_containers:
        raise ApiError(f"The body has more than {settings.json_containers} lists and objects")
    if max(accumulate(_STEP[bracket] for bracket in brackets), default=0) > settings.json_depth:
        raise ApiError(f"The body is nested deeper than {settings.json_depth} levels")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
