"""An endpoint over the fake engine with the starter's real tokenizer and template."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.keys import KeyStore
from app.rest.served import ServedEngine, served_engine
from app.rest.server import create_app
from app.rest.settings import RestSettings
from backend.chat_template import ChatRenderer
from backend.library.files import ModelFiles
from tests.fakes.engine_client import FakeEngine


@dataclass
class Endpoint:
    """One application with its engine and keys, and a client in this process."""

    app: FastAPI
    engine: FakeEngine
    served: ServedEngine
    keys: KeyStore
    http: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json={"model": self.engine.model, **body})

    async def chat(self, text: str = "Hello there", **body: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **body}
        return await self.post("/v1/chat/completions", **body)

    async def complete(self, prompt: Any = "one two three", **body: Any) -> httpx.Response:
        return await self.post("/v1/completions", **{"prompt": prompt, "temperature": 0, "max_tokens": 8, **body})


Opener = Callable[..., contextlib.AbstractAsyncContextManager[Endpoint]]


@pytest.fixture(scope="session")
def starter_served(starter: ModelFiles) -> ServedEngine:
    """The tokenizer is read once for all tests."""
    return served_engine(FakeEngine(), starter, ChatRenderer())


@pytest.fixture
def open_endpoint(starter: ModelFiles, starter_served: ServedEngine, tmp_path: Path) -> Opener:
    @asynccontextmanager
    async def opened(settings: RestSettings | None = None, **engine: Any) -> AsyncIterator[Endpoint]:
        fake = FakeEngine(**engine)
        renderer = ChatRenderer()
        template = type(starter_served.template)(starter_served.tokenizer, starter_served.template.text, renderer)
        served = ServedEngine(fake, starter_served.tokenizer, template)
        keys = KeyStore(tmp_path / "keys.json")
        app = create_app({fake.model: served}, keys, settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
            yield Endpoint(app, fake, served, keys, http)
        await renderer.close()

    return opened


@pytest.fixture
async def endpoint(open_endpoint: Opener) -> AsyncIterator[Endpoint]:
    async with open_endpoint() as opened:
        yield opened


@asynccontextmanager
async def listening(app: FastAPI, **options: Any) -> AsyncIterator[int]:
    """Serves the application on a free loopback port, on this event loop: the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1, **options
        )
        server = uvicorn.Server(config)
        task = asyncio.ensure_future(server._serve([listener]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@pytest.fixture
def listen() -> Callable[..., contextlib.AbstractAsyncContextManager[int]]:
    return listening
