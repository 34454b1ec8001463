"""`shardwise chat`: plain chat in a terminal or a pipe. The conversation is `plain_chat`'s, servers `background`'s.

A server that is running with the model is used; else one is started for the length of this chat, and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Annotated

import typer

from app.background import StartedServer, find_server, follow_start, start_server
from app.client import ServerUnreachableError, ShardwiseClient
from app.plain_chat import PlainChat
from app.sampling_fields import read_all
from app.settings import client_key
from backend.errors import SettingError

DEFAULT_MODEL = "starter"
STOP_SECONDS = 20.0
MOST_INPUT_CHARACTERS = 4_000_000
INTERRUPTED = 130


def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="starter, org/name, a folder or a .gguf file; default: what a running server serves."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to ask; with a pipe, it stands before the pipe's text.")
    ] = None,
    *,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Annotated[str, typer.Option(help="0 to 2; 0 always takes the likeliest token.")] = "",
    top_p: Annotated[str, typer.Option(help="Keep the likeliest tokens up to this probability.")] = "",
    max_tokens: Annotated[str, typer.Option(help="End answers after this many tokens.")] = "",
    seed: Annotated[str, typer.Option(help="The same seed draws the same answer again.")] = "",
    url: Annotated[str | None, typer.Option(help="Use the server at this address.")] = None,
    key: Annotated[str | None, typer.Option(help="API key; default: SHARDWISE_API_KEY.")] = None,
) -> None:
    """Chat in plain text: `echo hi | shardwise chat starter` prints the answer, a terminal gets a conversation."""
    try:
        sampling = read_all({"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed})
    except ValueError as error:
        raise SettingError("The answer cannot be sampled like this", f"{error}.") from None
    asked = _asked(prompt or [])
    with asyncio.Runner() as runner, _ended_by_signals():
        try:
            with _server(runner, model, url, key or client_key()) as (client, name):
                plain = PlainChat(runner, client, name, system, sampling, sys.stdout, sys.stderr)
                if asked is None:
                    plain.converse(_line_reader())
                else:
                    plain.answer(asked)
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our answer has enough; Python must not complain about it once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


def _asked(prompt: list[str]) -> str | None:
    """What to ask, of the arguments and of a pipe; None for a conversation on a terminal."""
    text = " ".join(prompt)
    if sys.stdin is None or sys.stdin.isatty():
        return text or None
    piped = sys.stdin.read(MOST_INPUT_CHARACTERS).strip("\n")
    asked = "\n\n".join(part for part in (text, piped) if part.strip())
    if not asked:
        raise SettingError("There is nothing to ask", "The input is empty.", 'Try: echo "hi" | shardwise chat starter')
    return asked


@contextmanager
def _server(
    runner: asyncio.Runner, model: str | None, url: str | None, key: str | None
) -> Iterator[tuple[ShardwiseClient, str]]:
    """A client of a server that is ready, and the name of the model to ask for."""
    started: StartedServer | None = None
    if url is None:
        record = runner.run(find_server(model, key))
        if record is not None:
            url = record.url
            _note(f"Using the server at {url} ({record.model}).")
        else:
            started = _start(model or DEFAULT_MODEL)
            url = started.url
    client = ShardwiseClient(url, key)
    try:
        yield client, runner.run(_ready_model(client, started, model))
    finally:
        runner.run(client.aclose())
        if started is not None:
            _end(started)


def _start(model: str) -> StartedServer:
    """Fetches the model where it is missing, and starts a server that ends with this chat."""
    from backend.library.resolve import pull

    pull(model, _Download())
    _note(f"Starting {model} for this chat; `shardwise serve {model}` in another terminal keeps one running.")
    return start_server(model)


class _Download:
    """Tells the progress of a download, each tenth of it."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, done: int, total: int) -> None:
        tenth = done * 10 // total if total else 0
        if tenth > self._told:
            self._told = tenth
            _note(f"Downloading: {tenth * 10}% of {total / 1e6:.0f} MB")


async def _ready_model(client: ShardwiseClient, started: StartedServer | None, model: str | None) -> str:
    """Waits until the server answers requests; tells each stage of its start as it ends."""
    told: set[str] = set()
    begin = monotonic()
    async for health in follow_start(client, started):
        for stage in health.engines[0].stages if health.engines and started is not None else ():
            if stage.finished and stage.stage not in told:
                told.add(stage.stage)
                _note(f"  {stage.stage}: {stage.seconds:.1f} s")
    if started is not None:
        _note(f"Ready after {monotonic() - begin:.1f} s.")
    names = [each.id for each in await client.models()]
    if not names:
        raise ServerUnreachableError(f"{client.url} serves no model")
    return model if model in names else names[0] if model is None else model


def _end(started: StartedServer) -> None:
    started.process.terminate()
    try:
        started.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        started.process.terminate()
        started.process.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP unwind us, so that a server of ours never stays behind."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line_reader():
    """`input`, with line editing where Python has it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it is what gives input() its editing)
    return input


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
