"""Real servers for tests that go end to end: `python -m app serve` in a process group of its own, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0


@dataclass(frozen=True)
class RunningServer:
    """A server that answers; its output goes to `log`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=10)

    def engine_pid(self) -> int:
        return self.health().json()["engines"][0]["pid"]

    def ranks(self) -> list[dict[str, Any]]:
        """What /health tells of each rank, in order."""
        return self.health().json()["engines"][0]["ranks"]

    def await_health(self, status: int, seconds: float) -> float:
        """Seconds until `/health` answers with that status; fails where it does not in time."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.health().status_code == status:
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"/health did not become {status} within {seconds} s:\n{self.log.read_text()}")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def running_server(folder: Path, *options: str, model: str = "starter", ready: bool = True) -> Iterator[RunningServer]:
    """Starts `shardwise serve` with these options and ends it, with all its children, afterwards."""
    log = folder / "server.log"
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder), "PYTHONWARNINGS": "default"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", model, "--port", "0", *options],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            server = RunningServer(_listening(process, log), process, log)
            if ready:
                server.await_health(200, START_SECONDS)
            yield server
        finally:
            left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGKILL)
            process.wait()
            psutil.wait_procs(left, timeout=10)


def _listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL that the server says it listens on."""
    began = time.monotonic()
    while time.monotonic() - began < START_SECONDS and process.poll() is None:
        found = re.search(r"Listening on (http://\S+?);", log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"The server did not listen:\n{log.read_text()}")
