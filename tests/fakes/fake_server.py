"""A server in this process that answers like ours: health with stages, models, deterministic streams."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class FakeServer:
    """What the fake answers with, changed by tests while it runs, and what it has seen."""

    model: str = "fake/model"
    context: int = 4096
    status: str = "ready"
    error: str = ""
    stages: list[dict] = field(default_factory=list)
    pieces: list[str] = field(default_factory=lambda: ["Hello", " from", " the", " fake."])
    delay: float = 0.0
    break_after: int | None = None
    refuse: str | None = None
    key: str | None = None
    requests: list[dict] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    hold_after: int | None = None
    url: str = ""
    cache: dict | None = None
    plan: dict | None = None
    fallback: str = ""
    peers: dict | None = None
    trouble: str = ""
    ranks: list[dict] = field(default_factory=list)

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/cache", self._cache),
                Route("/plan", self._plan),
                Route("/peers", self._peers),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    async def _health(self, request: Request) -> Response:
        state = "restarting" if self.status == "degraded" else self.status
        engine = {"model": self.model, "state": state, "pid": 1, "ranks": self.ranks}
        engine |= {"stages": self.stages, "error": self.error, "trouble": self.trouble}
        status = 200 if self.status in ("ready", "degraded") else 503
        body = {"status": self.status, "engines": [engine]}
        return JSONResponse(body | ({"fallback": self.fallback} if self.fallback else {}), status)

    def _denied(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": {"message": "no key"}}, 401)

    async def _models(self, request: Request) -> Response:
        body = {"data": [{"id": self.model, "object": "model", "max_model_len": self.context}]}
        return self._denied(request) or JSONResponse(body)

    async def _cache(self, request: Request) -> Response:
        if self.cache is None:
            return JSONResponse({"error": {"message": "no such route"}}, 404)
        return self._denied(request) or JSONResponse({"engines": [self.cache]})

    async def _plan(self, request: Request) -> Response:
        if self.plan is None:
            return JSONResponse({"error": {"message": "The engine is starting"}}, 503)
        return self._denied(request) or JSONResponse({"engines": [self.plan]})

    async def _peers(self, request: Request) -> Response:
        if self.peers is None:
            return JSONResponse({"error": {"message": "no such route"}}, 404)
        return self._denied(request) or JSONResponse(self.peers)

    async def _chat(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        self.requests.append(await request.json())
        if self.refuse is not None:
            return JSONResponse({"error": {"message": self.refuse, "code": "refused"}}, 400)
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        try:
            for number, piece in enumerate(self.pieces):
                if number == self.break_after:
                    return
                if number == self.hold_after:
                    while not self.release.is_set():  # noqa: ASYNC110 (set from the test's thread)
                        await asyncio.sleep(0.01)
                if self.delay:
                    await asyncio.sleep(self.delay)
                yield _event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 11, "completion_tokens": len(self.pieces)}
            yield _event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


def _event(body: dict) -> str:
    chunk = {"object": "chat.completion.chunk", "usage": None, **body}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


@contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """Runs the fake on a free loopback port, in a thread, until the block ends."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(fake.url.rsplit(":", 1)[-1]) if fake.url else 0))
    # Listening before the thread runs, so that nobody is refused meanwhile.
    listener.listen(64)
    config = uvicorn.Config(
        fake.application(), log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.start()
    try:
        yield fake
    finally:
        fake.release.set()
        server.should_exit = True
        thread.join()
        listener.close()
