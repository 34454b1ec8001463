"""Servers in the background: finding running ones, starting one that outlives us, following its start, stopping it.

A running server describes itself in `server-PORT.json` in the user's runtime folder; the server writes and removes
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import psutil

from app.client import ServerUnreachableError, ShardwiseClient
from app.health_view import EngineHealth, Health
from app.runtime_file import runtime_folder
from app.text_safety import clean
from backend.errors import ShardwiseError

DEFAULT_PORT = 8000
POLL_SECONDS = 0.2
LOG_TAIL_BYTES = 16 * 1024
MOST_LAST_WORDS = 6
_TIMED_LINE = re.compile(r"\d{4}-\d\d-\d\dT|Listening on |Ready after ")
_APP_FOLDER = Path(__file__).resolve().parent


class StartError(ShardwiseError):
    """A server did not come up; why is the engine's own explanation, or the end of its log."""

    code = "start_failed"


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server as its runtime file describes it."""

    pid: int
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class StartedServer:
    """A server that we started: its process (which outlives us), where it will answer, where it logs."""

    process: subprocess.Popen[bytes]
    url: str
    model: str
    log: Path


def log_folder() -> Path:
    return platformdirs.user_log_path("shardwise")


def log_of(url: str) -> Path:
    """Where a server in the background at this URL logs to."""
    return log_folder() / f"background-{url.rsplit(':', 1)[-1].strip('/')}.log"


def running_servers() -> tuple[ServerRecord, ...]:
    """Servers of this user whose process lives, the newest first. Files left by dead ones are passed over."""
    try:
        files = sorted(runtime_folder().glob("server-*.json"), key=lambda path: -path.stat().st_mtime)
    except OSError:
        return ()
    records = (_read_record(path) for path in files)
    return tuple(record for record in records if record is not None and _is_server(record.pid))


async def find_server(model: str | None = None, key: str | None = None) -> ServerRecord | None:
    """A running server that answers and has not failed; with `model`, one that serves it."""
    for record in running_servers():
        if model is not None and record.model != model:
            continue
        client = ShardwiseClient(record.url, key)
        try:
            health = await client.health()
        except ShardwiseError:
            continue
        finally:
            await client.aclose()
        if health.status not in ("failed", "draining"):
            return record
    return None


def start_server(model: str, options: tuple[str, ...] = (), detached: bool = True) -> StartedServer:
    """Spawns `shardwise serve MODEL` on a free loopback port and returns at once.

    `detached`: in a session of its own, so that closing our terminal leaves it running. Its output goes to a
    log file
    (0600) that starts afresh.

    Raises:
        StartError: the process or its log file could not be made.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    log = log_of(url)
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as output:
            process = subprocess.Popen(
                # -P keeps a package named `app` in the current folder from being started in our place.
                [sys.executable, "-P", "-m", "app", "serve", model, "--port", str(port), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=detached,
                env={**os.environ, "PYTHONPATH": _python_path()},
            )
    except OSError as error:
        raise StartError("The server could not be started", f"{error.filename or log}: {error.strerror}.") from error
    return StartedServer(process, url, model, log)


async def follow_start(client: ShardwiseClient, started: StartedServer | None = None) -> AsyncIterator[Health]:
    """Yields `/health` until the server is ready; the last one yielded is the ready one.

    `started` is the process to watch where it is ours: before it listens, not answering is no error.

    Raises:
        StartError: the process ended, or the engine failed.
        ServerUnreachableError: nobody answers, and there is no process of ours to wait for.
    """
    while True:
        ended = started is not None and started.process.poll() is not None
        try:
            health = await client.health()
        except ServerUnreachableError:
            if started is None:
                raise
            if ended:
                raise start_failure(started) from None
        else:
            yield health
            if health.ready:
                return
            failed = next((engine for engine in health.engines if engine.state == "failed"), None)
            if failed is not None:
                raise _engine_failure(failed)
        await asyncio.sleep(POLL_SECONDS)


def start_failure(started: StartedServer) -> StartError:
    """Why a server of ours has ended: its own last words, which stand after the timed lines of its log."""
    lines = [line for line in log_tail(started.log).splitlines() if line.strip()]
    words: list[str] = []
    while lines and len(words) < MOST_LAST_WORDS and not _TIMED_LINE.match(lines[-1]):
        words.insert(0, lines.pop())
    whole = f"The whole log is {started.log}."
    if not words:
        return StartError(f"The server ended with status {started.process.returncode}", "", whole)
    return StartError(words[0], "\n".join(words[1:]), whole)


def log_tail(path: Path) -> str:
    """The end of a log, cleaned; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return clean(file.read().decode(errors="replace"))
    except OSError:
        return ""


async def stop_server(pid: int, seconds: float = 30.0) -> bool:
    """Asks the server to drain and end (SIGTERM); True when it has ended within `seconds`. Other processes
    are safe."""
    if not _is_server(pid):
        return True
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    for _ in range(int(seconds / POLL_SECONDS)):
        if not _is_server(pid):
            return True
        await asyncio.sleep(POLL_SECONDS)
    return False


def _read_record(path: Path) -> ServerRecord | None:
    try:
        body = json.loads(path.read_text())
        return ServerRecord(int(body["pid"]), str(body["url"]), str(body["model"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_server(pid: int) -> bool:
    """Whether the process lives and is a `serve` of ours: process ids are used again, and a file may be
    stale."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "serve" in process.cmdline()
    except psutil.Error:
        return False


def _engine_failure(engine: EngineHealth) -> StartError:
    lines = [line for line in engine.error.splitlines() if line.strip()]
    what = lines[0] if lines else f"The engine for {engine.model} did not start"
    return StartError(what, "\n".join(lines[1:-1]), lines[-1] if len(lines) > 1 else "")


def _free_port() -> int:
    """The default port, or one that the system gives; the server says so if another program is faster."""
    for port in (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise StartError("No port is free for the server", "Every loopback port is in use.")


def _python_path() -> str:
    """The folder that our own package was imported from, first, so that the server is this very program."""
    inherited = os.environ.get("PYTHONPATH")
    ours = str(_APP_FOLDER.parent)
    return f"{ours}{os.pathsep}{inherited}" if inherited else ours
