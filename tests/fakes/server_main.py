"""A server program for tests of its life: the real ServerProcess and supervisor over the test's engine process.

Its HTTP side is the least that shows the life: `/health`, and a stream of token ids that ends with its reason.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from app.cli import ending
from app.listener import bind
from app.logs import configure_logging
from app.serve import ServerProcess, run_server, say
from backend.engine_settings import EngineSettings
from backend.errors import EngineUnavailableError
from backend.events import End, Start, Token
from backend.library.files import ModelFiles
from backend.request import Request, Sampling
from backend.supervisor import EngineSupervisor
from tests.fakes.engine_options import EngineOptions


def application(supervisor: EngineSupervisor) -> ASGIApp:
    async def health(_: HttpRequest) -> Response:
        status = supervisor.status()
        return JSONResponse({"status": status.state, "pid": status.pid}, 200 if status.state == "ready" else 503)

    async def answer(http: HttpRequest) -> Response:
        count = int(http.query_params["tokens"])
        request = Request(id=http.query_params["id"], prompt=(1, 2, 3), sampling=Sampling(max_tokens=count))
        events = supervisor.generate(request)
        try:
            first = await anext(events)
        except EngineUnavailableError as error:
            return JSONResponse({"error": error.code}, 503)

        async def body() -> AsyncIterator[str]:
            yield _line(first)
            async for event in events:
                yield _line(event)

        return StreamingResponse(body(), media_type="text/plain")

    return Starlette(routes=[Route("/health", health), Route("/answer", answer)])


def _line(event: Start | Token | End) -> str:
    if isinstance(event, Start):
        return ""
    return f"{event.token}\n" if isinstance(event, Token) else f"{event.reason}\n"


def main() -> int:
    options = msgspec.json.decode(sys.argv[1], type=EngineOptions)
    files = ModelFiles(name="test", format="gguf", weights=("/w",), folder="/w", bytes=1)
    configure_logging(Path(sys.argv[4]))
    listener = bind("127.0.0.1", int(sys.argv[2]))

    def make() -> ServerProcess:
        supervisor = EngineSupervisor(EngineSettings(files=files), command=options.command())
        return ServerProcess({"test": supervisor}, lambda: application(supervisor), listener, float(sys.argv[3]), say)

    return run_server(make)


if __name__ == "__main__":
    with ending():
        sys.exit(main())
