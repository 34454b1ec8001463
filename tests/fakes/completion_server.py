"""A completions server in this process with a word for a token, whose quirks tests choose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.fake_server import FakeServer


@dataclass
class CompletionServer(FakeServer):
    """Tokens are words. `requests` are the bodies it has seen, `most` how many it answered at once.

    Answers of `cut_from` tokens and more end without a finish."""

    tokenizes: bool = True
    refused_fields: tuple[str, ...] = ()
    cut_from: int | None = None
    most: int = 0
    running: int = 0
    seen: set[str] = field(default_factory=set)

    def application(self) -> Starlette:
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._completions, methods=["POST"]),
        ]
        if self.tokenizes:
            routes.append(Route("/tokenize", self._tokenize, methods=["POST"]))
        return Starlette(routes=routes)

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse({"count": len(body["prompt"].split()), "tokens": []})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if denied := self._denied(request):
            return denied
        refused = [name for name in self.refused_fields if name in body]
        if refused or self.refuse:
            return JSONResponse({"error": {"message": f"{refused or self.refuse}"}}, 400)
        return StreamingResponse(self._words(body), media_type="text/event-stream")

    async def _words(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.running += 1
        self.most = max(self.most, self.running)
        prompt = body.get("prompt") or body["messages"][0]["content"]
        cached = len(prompt.split()) if prompt in self.seen else 0
        self.seen.add(prompt)
        count = body["max_tokens"]
        cut = self.cut_from is not None and count >= self.cut_from
        for number in range(count):
            await asyncio.sleep(self.delay)
            last = "length" if number == count - 1 and not cut else None
            yield _event({"choices": [{"text": f" w{number}", "delta": {}, "finish_reason": last}]})
        if body.get("stream_options"):
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": count}
            yield _event({"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}}})
        self.running -= 1
        if not cut:
            yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f": comment\ndata: {json.dumps(body)}\n\n"
