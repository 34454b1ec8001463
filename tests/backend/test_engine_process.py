"""The engine process alone at the end of its socket: frames, settings, exits; it never outlives a server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from backend.engine_environment import engine_environment
from backend.engine_settings import EngineSettings
from backend.events import Token
from backend.frames import receive_frame
from backend.library.files import ModelFiles
from backend.messages import (
    FromEngine,
    Heartbeat,
    Progress,
    Ready,
    StartFailed,
    StepOutput,
    Stop,
    Submit,
    encoder,
    frame,
    from_engine_decoder,
)
from backend.request import Request, Sampling
from tests.fakes.engine_options import EngineOptions, expected_answer

SETTINGS = EngineSettings(files=ModelFiles(name="test", format="gguf", weights=("/w",), folder="/w", bytes=1))


@contextmanager
def engine_process(options: EngineOptions) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [*options.command(), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=engine_environment(SETTINGS, os.environ),
                stderr=subprocess.PIPE,
            )
        try:
            body = encoder.encode(SETTINGS)
            ours.sendall(len(body).to_bytes(4, "big") + body)
            yield process, ours
        finally:
            process.kill()
            process.communicate()


def messages(peer: socket.socket) -> Iterator[FromEngine]:
    while (body := receive_frame(peer)) is not None:
        yield from_engine_decoder.decode(body)


def wait_for(peer: socket.socket, kind: type[FromEngine]) -> list[FromEngine]:
    """All messages up to the first of `kind`."""
    seen: list[FromEngine] = []
    for message in messages(peer):
        seen.append(message)
        if isinstance(message, kind):
            return seen
    raise AssertionError(f"the engine closed after {seen}")


def long_request(name: str = "a", tokens: int = 3000) -> Submit:
    return Submit(Request(id=name, prompt=(1, 2), sampling=Sampling(max_tokens=tokens)))


def test_start_is_told_and_work_is_done() -> None:
    with engine_process(EngineOptions()) as (process, peer):
        *before, ready = wait_for(peer, Ready)
        assert [message.stage for message in before if isinstance(message, Progress)] == ["read", "load"]
        assert isinstance(ready, Ready)
        assert ready.rank_pids == (process.pid,)
        peer.sendall(frame(long_request(tokens=20)))
        tokens: list[Token] = []
        for message in messages(peer):
            tokens += message.tokens if isinstance(message, StepOutput) else ()
            if isinstance(message, StepOutput) and message.ends:
                break
        assert [token.token for token in tokens] == expected_answer((1, 2), 20)
        peer.sendall(frame(Stop()))
        process.wait(5)


def test_a_refused_start_is_reported_and_ends_the_process() -> None:
    with engine_process(EngineOptions(start_error="no")) as (process, peer):
        failed = wait_for(peer, StartFailed)[-1]
        assert failed == StartFailed("broken_model", "no", "It is a test.", "Write another.")
        assert process.wait(5) == 0


def test_a_bug_at_start_leaves_a_traceback_and_a_status() -> None:
    with engine_process(EngineOptions(crash_at_start=True)) as (process, _):
        _, errors = process.communicate(timeout=5)
        assert process.returncode == 1
        assert b"RuntimeError: a bug in start-up" in errors


def test_the_heart_beats_while_a_step_runs() -> None:
    with engine_process(EngineOptions(step_seconds=1.2)) as (_, peer):
        wait_for(peer, Ready)
        peer.sendall(frame(long_request()))
        seen = wait_for(peer, StepOutput)
        assert any(isinstance(message, Heartbeat) and message.step_seconds > 0.4 for message in seen)


@pytest.mark.parametrize("options", [EngineOptions(start_seconds=60), EngineOptions(step_seconds=60)])
def test_it_ends_when_the_server_closes_even_in_a_long_step(options: EngineOptions) -> None:
    with engine_process(options) as (process, peer):
        wait_for(peer, Progress if options.start_seconds else Ready)
        peer.sendall(frame(long_request()))
        time.sleep(0.1)
        peer.close()
        process.wait(2)


def test_a_broken_frame_ends_it_with_a_traceback() -> None:
    with engine_process(EngineOptions()) as (process, peer):
        wait_for(peer, Ready)
        peer.sendall((5).to_bytes(4, "big") + b"hello")
        _, errors = process.communicate(timeout=5)
        assert process.returncode != 0
        assert b"DecodeError" in errors or b"ValidationError" in errors


def test_ctrl_c_is_ignored_and_sigterm_obeyed() -> None:
    with engine_process(EngineOptions()) as (process, peer):
        wait_for(peer, Ready)
        process.send_signal(signal.SIGINT)
        peer.sendall(frame(long_request(tokens=2)))
        wait_for(peer, StepOutput)
        process.terminate()
        assert process.wait(5) == -signal.SIGTERM


def test_it_dies_with_a_server_that_is_killed() -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from backend.supervisor import EngineSupervisor
        from tests.backend.test_engine_process import SETTINGS
        from tests.fakes.engine_options import EngineOptions
        async def main():
            supervisor = EngineSupervisor(SETTINGS, command=EngineOptions().command())
            await supervisor.start()
            await supervisor.wait_ready(10)
            print("pid", supervisor.status().pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """)
    root = str(Path(__file__).resolve().parents[2])
    server = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    with server.stdout:
        line = next(line for line in server.stdout if line.startswith(b"pid"))
        engine = psutil.Process(int(line.split()[1]))
        # Frozen, it cannot notice the closed socket: the system has to end it.
        engine.suspend()
        server.kill()
        server.wait(5)
    with suppress(psutil.NoSuchProcess):
        engine.wait(3)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_the_environment_sets_threads_before_the_libraries_load() -> None:
    environment = engine_environment(
        EngineSettings(files=SETTINGS.files, threads=3), {"OMP_NUM_THREADS": "64", "PYTHONPATH": "/elsewhere"}
    )
    assert environment["OMP_NUM_THREADS"] == environment["NUMBA_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["PYTHONPATH"].split(os.pathsep)[1] == "/elsewhere"
