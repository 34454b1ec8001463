"""A server as a process under measurement: start-up time, memory and processor time of its whole tree, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

_MIB = 1 << 20


class ServedProcess:
    """A running server; its `peak_mib` is sampled twice a second from the start on."""

    def __init__(self, process: subprocess.Popen[bytes], startup_seconds: float) -> None:
        self._process = process
        self.startup_seconds = startup_seconds
        self.peak_mib = 0.0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def resident_mib(self) -> float:
        """Sum of resident sizes; what processes share counts in each."""
        total = 0
        for process in self.tree():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total / _MIB

    def proportional_mib(self) -> float:
        """Sum of proportional sizes: what processes share counts once."""
        total = 0
        for process in self.tree():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / _MIB

    def processor_seconds(self) -> float:
        total = 0.0
        for process in self.tree():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self) -> None:
        """SIGTERM to the group, SIGKILL to what is left after 20 s; also ends what outlives its parent."""
        self._ended.set()
        self._sampler.join()
        group = self._process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                self._process.poll()
                os.killpg(group, 0)
                time.sleep(0.1)
            os.killpg(group, signal.SIGKILL)
        self._process.wait()

    def _sample(self) -> None:
        while not self._ended.wait(0.5):
            self.peak_mib = max(self.peak_mib, self.resident_mib())


@contextmanager
def served(command: list[str], url: str, model: str, log: Path, timeout: float = 600) -> Iterator[ServedProcess]:
    """Starts a server, waits until it has answered a request of one token, and stops it in the end."""
    with suppress(httpx.TransportError):
        httpx.get(url, timeout=5, trust_env=False)
        raise SystemExit(f"something already listens at {url}")
    begin = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    running: ServedProcess | None = None
    try:
        _await_token(process, url, model, timeout, log)
        running = ServedProcess(process, time.perf_counter() - begin)
        yield running
    finally:
        (running or ServedProcess(process, 0.0)).stop()


def _await_token(process: subprocess.Popen[bytes], url: str, model: str, timeout: float, log: Path) -> None:
    body = {"model": model, "prompt": "Hi", "max_tokens": 1, "temperature": 0}
    deadline = time.monotonic() + timeout
    with httpx.Client(timeout=timeout, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}; see {log}")
            with suppress(httpx.TransportError):
                if client.post(f"{url}/v1/completions", json=body).status_code == 200:
                    return
            time.sleep(0.05)
    raise SystemExit(f"no answer within {timeout:.0f} s; see {log}")


class ForeignClock:
    """Processor time that neither the server nor this process used, in cores, since it was made."""

    def __init__(self, server: ServedProcess) -> None:
        self._server = server
        self._begin = self._moment()

    def cores(self) -> float:
        wall, foreign = (now - then for now, then in zip(self._moment(), self._begin, strict=True))
        return foreign / wall if wall else 0.0

    def _moment(self) -> tuple[float, float]:
        times, own = psutil.cpu_times(), time.process_time()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        return time.perf_counter(), busy - own - self._server.processor_seconds()
