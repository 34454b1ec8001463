"""ServerProcess: the life of the server process: engines, HTTP, signals, the end. Wiring is `compose`'s.

bind -> engines start -> application -> listen -> ready -> first signal: drain -> second signal: abort -> reaped
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from app.listener import port_error, url_of
from app.runtime_file import announced
from backend.engine_client import EngineClient
from backend.errors import EngineUnavailableError

CONNECTIONS = 1000
FILE_DESCRIPTORS = 8192
CLOSING_SECONDS = 5

log = structlog.get_logger("shardwise.server")


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handling: here a signal drains the engines first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ServerProcess:
    """One server; `run` is called once.

    Args:
        engines: by model name, the main one first; started and stopped here.
        build: makes the ASGI application. It may take seconds (tokenizers load), so it runs in a thread, beside the
            start of the engines.
        listener: bound, not listening yet; closed here.
        drain_timeout: seconds that running answers get after the first signal.
        say: prints a line for the person who started this.
        prepare: done beside the start of the engines, before the first request; must not raise.
        close: frees what the application holds, processes of its own included; called once, at the end.
        standby: engines that are started once the others serve, so that these choose from all of the memory; one that
            cannot start is only warned of.
    """

    def __init__(
        self,
        engines: Mapping[str, EngineClient],
        build: Callable[[], ASGIApp],
        listener: socket.socket,
        drain_timeout: float,
        say: Callable[[str], None],
        prepare: Callable[[], Awaitable[None]] | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
        standby: Mapping[str, EngineClient] | None = None,
    ) -> None:
        self._standby = standby or {}
        self._engines, self._build, self._listener = engines, build, listener
        self._drain_timeout, self._say = drain_timeout, say
        self._prepare, self._close = prepare, close
        self._url = url_of(listener)
        self._drain, self._abort = asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        """Serves until a signal: the exit status, 0 when every running answer was finished. No child is left.

        Raises:
            ShardwiseError: the port is taken, or an engine refused to start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            await asyncio.gather(*(engine.start() for engine in self._engines.values()))
            if self._prepare is not None:
                await self._prepare()
            application = await asyncio.to_thread(self._build)
            return await self._serve(_Uvicorn(self._configuration(application)))
        finally:
            self._listener.close()
            await asyncio.gather(*(engine.stop() for engine in self._all()))
            if self._close is not None:
                await self._close()

    def _all(self) -> tuple[EngineClient, ...]:
        return (*self._engines.values(), *self._standby.values())

    def _signalled(self) -> None:
        (self._abort if self._drain.is_set() else self._drain).set()

    def _configuration(self, application: ASGIApp) -> uvicorn.Config:
        return uvicorn.Config(
            application,
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )

    async def _serve(self, server: uvicorn.Server) -> int:
        port = self._listener.getsockname()[1]
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        starting = asyncio.create_task(self._follow_start())
        drain = asyncio.create_task(self._drain.wait())
        try:
            with announced(port, self._url, next(iter(self._engines))):
                self._say(f"Listening on {self._url}; the engine is starting.")
                waiting = {serving, starting, drain}
                while serving in waiting and drain in waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                return await self._finish(server, serving) if self._drain.is_set() else 1
        except OSError as error:
            host = self._listener.getsockname()[0] if self._listener.fileno() >= 0 else "this address"
            raise port_error(host, port, error) from error
        finally:
            server.should_exit = True
            for task in (starting, drain):
                task.cancel()
            await asyncio.wait([serving], timeout=CLOSING_SECONDS)

    async def _follow_start(self) -> None:
        """Says when all engines serve; raises where one cannot."""
        began = time.monotonic()
        for engine in self._engines.values():
            if not await engine.wait_ready() and engine.status().state == "failed":
                raise EngineUnavailableError(engine.status().error)
        self._say(f"Ready after {time.monotonic() - began:.1f} s: {', '.join(self._engines)} at {self._url}/v1")
        for name, engine in self._standby.items():
            await self._start_standby(name, engine)

    async def _start_standby(self, name: str, engine: EngineClient) -> None:
        await engine.start()
        if await engine.wait_ready():
            self._say(f"The fallback {name} is ready, too.")
        elif engine.status().state == "failed":
            log.warning("fallback is not served", model=name, why=engine.status().error)
            self._say(f"Warning: the fallback {name} is not served. {engine.status().error}")

    async def _finish(self, server: uvicorn.Server, serving: asyncio.Task[None]) -> int:
        """After the first signal: waits for running answers, then for their connections."""
        self._say("Finishing running answers; once more to stop at once.")
        drained = asyncio.gather(*(engine.drain() for engine in self._all()))
        abort = asyncio.create_task(self._abort.wait())
        try:
            await asyncio.wait({drained, abort}, timeout=self._drain_timeout, return_when=asyncio.FIRST_COMPLETED)
            complete = drained.done() and not self._abort.is_set()
            if not complete:
                log.warning("answers cut off", why="second signal" if self._abort.is_set() else "drain timeout")
                drained.cancel()
                await asyncio.gather(*(engine.stop() for engine in self._all()))
                # Their answers have ended; a reader that does not take the end is not waited for.
                server.config.timeout_graceful_shutdown = 1
            server.should_exit = True
            await asyncio.wait({serving, abort}, return_when=asyncio.FIRST_COMPLETED)
            return 0 if complete else 1
        finally:
            drained.cancel()
            abort.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drained


def run_server(make: Callable[[], ServerProcess]) -> int:
    """Runs what `make` makes on uvloop: the exit status. `make` is called inside the loop's thread, before it runs."""
    _allow_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(make))


async def _run(make: Callable[[], ServerProcess]) -> int:
    return await make().run()


def _allow_files() -> None:
    """Room for many connections: the usual soft limit of 1024 files is below what the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILE_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, FILE_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def say(line: str) -> None:
    """A line on standard output at once, also into a pipe; a reader that has gone is no reason to stop serving."""
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
