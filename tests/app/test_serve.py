"""The life of the server process, by real signals: drain, abort, kill, a taken port; no child stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from app.listener import PortError, bind, url_of
from backend.library.locations import source_root
from tests.fakes.engine_options import EngineOptions, expected_answer


@dataclass
class Server:
    """A running server program of `tests.fakes.server_main`."""

    process: subprocess.Popen[str]
    url: str
    runtime: Path

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=5)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def record(self) -> Path:
        return self.runtime / "shardwise" / f"server-{self.url.rsplit(':', 1)[1]}.json"


def spawn(
    folder: Path, options: EngineOptions | None = None, port: int = 0, drain: float = 30.0
) -> subprocess.Popen[str]:
    chosen = msgspec.json.encode(options or EngineOptions()).decode()
    arguments = [chosen, str(port), str(drain), str(folder / "server.jsonl")]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.fakes.server_main", *arguments],
        env={**os.environ, "PYTHONPATH": str(source_root()), "XDG_RUNTIME_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def serving(
    folder: Path, options: EngineOptions | None = None, ready: bool = True, drain: float = 30.0
) -> Iterator[Server]:
    process = spawn(folder, options, drain=drain)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Listening on http://127.0.0.1:")
        server = Server(process, line.split()[2].rstrip(";"), folder)
        if ready:
            assert process.stdout.readline().startswith("Ready after")
        yield server
    finally:
        process.kill()
        process.communicate()


class Answer(threading.Thread):
    """Reads one answer's lines in the background."""

    def __init__(self, server: Server, tokens: int, name: str = "a") -> None:
        super().__init__()
        self.url = f"{server.url}/answer?id={name}&tokens={tokens}"
        self.lines: list[str] = []
        self.began = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("GET", self.url, timeout=30) as response:
                for line in response.iter_lines():
                    self.lines.append(line)
                    self.began.set()
        except httpx.HTTPError as error:
            self.lines.append(type(error).__name__)

    def result(self) -> list[str]:
        self.join(30)
        return self.lines


def gone(processes: list[psutil.Process], seconds: float = 3.0) -> bool:
    """Whether all have ended; one that nobody reaps (this machine may lack an init) counts as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes):
            return True
        time.sleep(0.02)
    return False


def test_it_serves_says_where_and_ends_with_status_0_after_a_drain(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.health().status_code == 200
        record = server.record()
        assert record.stat().st_mode & 0o777 == 0o600
        assert json.loads(record.read_text()) == {
            "pid": server.process.pid, "url": server.url, "model": "test"
        }  # fmt: skip
        children = server.children()
        assert len(children) == 1
        answer = Answer(server, 100)
        assert answer.began.wait(5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        health = server.health()
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert httpx.get(f"{server.url}/answer?id=late&tokens=3").status_code == 503
        assert answer.result() == [*(str(token) for token in expected_answer((1, 2, 3), 100)), "length"]
        assert server.process.wait(5) == 0
        assert gone(children)
        assert not record.exists()


def test_a_second_signal_aborts_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        children = server.children()
        answer = Answer(server, 3000)
        assert answer.began.wait(5)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.process.poll() is None
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 1
        assert time.monotonic() - began < 3
        assert answer.result()[-1] in ("cancelled", "RemoteProtocolError")
        assert gone(children)


def test_a_drain_is_bounded(tmp_path: Path) -> None:
    with serving(tmp_path, drain=0.3) as server:
        answer = Answer(server, 3000)
        assert answer.began.wait(5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 1
        assert answer.result()[-1] in ("cancelled", "RemoteProtocolError")


def test_a_signal_while_the_engine_starts_ends_it(tmp_path: Path) -> None:
    with serving(tmp_path, EngineOptions(start_seconds=60), ready=False) as server:
        children = server.children()
        assert server.health().json()["status"] == "starting"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0
        assert gone(children)


def test_a_killed_server_leaves_no_engine(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        children = server.children()
        answer = Answer(server, 3000)
        assert answer.began.wait(5)
        server.process.kill()
        server.process.wait(5)
        assert gone(children)
        answer.join(5)


def test_a_port_in_use_is_said_clearly_and_a_stale_record_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "shardwise" / "server-1.json"
    stale.parent.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale.write_text(json.dumps({"pid": ended.pid, "url": "http://127.0.0.1:1", "model": "old"}))
    with serving(tmp_path) as server:
        assert not stale.exists()
        port = int(server.url.rsplit(":", 1)[1])
        second = spawn(tmp_path, port=port)
        _, errors = second.communicate(timeout=10)
        assert second.returncode == 1
        assert errors.splitlines()[0] == f"Port {port} on 127.0.0.1 is in use"
        assert "--port 0" in errors
        assert "Traceback" not in errors


def test_an_engine_that_cannot_start_ends_the_server_with_its_explanation(tmp_path: Path) -> None:
    with serving(tmp_path, EngineOptions(start_error="The file is broken"), ready=False) as server:
        _, errors = server.process.communicate(timeout=10)
        assert server.process.returncode == 1
        assert errors.splitlines()[-3:] == ["The file is broken", "It is a test.", "Write another."]
        assert "Traceback" not in errors
        assert not server.record().exists()


def test_a_runtime_folder_that_cannot_be_written_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    (tmp_path / "shardwise").write_text("a file is in the way")
    with serving(tmp_path) as server:
        assert server.health().status_code == 200
        server.process.terminate()
        _, errors = server.process.communicate(timeout=5)
        assert server.process.returncode == 0
        assert "no runtime file" in errors


def test_only_the_given_address_is_listened_on(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        processes = [psutil.Process(server.process.pid), *server.children()]
        listening = [
            connection.laddr
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == [("127.0.0.1", int(server.url.rsplit(":", 1)[1]))]


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(PortError, match="Cannot listen on 192"):
        bind("192.0.2.1", 0)


def test_an_ipv6_address_is_written_with_brackets() -> None:
    try:
        listener = bind("::1", 0)
    except PortError:
        pytest.skip("no IPv6 on this machine")
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
