"""Ranks for tests: real processes that run a function of a test module, and are gone afterwards whatever happens.

Arguments and results are what msgpack can carry, in files of the ranks' folder; multiprocessing would pickle them. A
rank is `python -m tests.fakes.ranks FILE:FUNCTION RANK SIZE FOLDER`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


@dataclass(frozen=True)
class Ranks:
    """Running processes, one a rank; their output lies in `folder`, which is private to them."""

    processes: tuple[subprocess.Popen[bytes], ...]
    folder: Path

    def log(self, rank: int) -> str:
        return (self.folder / f"{rank}.log").read_text()

    def say(self, word: str) -> None:
        """Lets ranks that wait in `hear` go on."""
        (self.folder / word).touch()

    def await_word(self, word: str, seconds: float = SECONDS) -> None:
        """Waits until a rank has said it; fails where none does."""
        self._until((self.folder / word).exists, f"nobody said {word}", seconds)

    def statuses(self, seconds: float = SECONDS) -> tuple[int, ...]:
        """Every rank's exit status, negative for a signal, once all have ended."""
        self._until(lambda: all(process.poll() is not None for process in self.processes), "ranks still run", seconds)
        return tuple(process.wait() for process in self.processes)

    def result(self, rank: int, seconds: float = SECONDS) -> Any:
        """What a rank's function returned; fails with its log where it returned nothing."""
        process = self.processes[rank]
        self._until(lambda: process.poll() is not None, f"rank {rank} still runs", seconds)
        path = self.folder / f"{rank}.result"
        assert path.exists(), f"rank {rank} ended with {process.returncode}:\n{self.log(rank)}"
        return msgspec.msgpack.decode(path.read_bytes())

    def results(self, seconds: float = SECONDS) -> list[Any]:
        return [self.result(rank, seconds) for rank in range(len(self.processes))]

    def _until(self, done: Callable[[], bool], complaint: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            logs = "\n".join(f"{rank}: {self.log(rank)}" for rank in range(len(self.processes)))
            assert time.monotonic() < deadline, f"{complaint} after {seconds} s:\n{logs}"
            time.sleep(0.01)


@contextmanager
def running_ranks(folder: Path, size: int, function: Callable[..., Any], **arguments: Any) -> Iterator[Ranks]:
    """Starts `function(rank, size, folder, **arguments)` on `size` ranks; kills what still runs afterwards.

    function: a module's own, of a file in this tree.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    source = Path(function.__code__.co_filename)
    given = msgspec.msgpack.encode(arguments)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(size):
            (folder / f"{rank}.arguments").write_bytes(given)
            with (folder / f"{rank}.log").open("wb") as log:
                command = [sys.executable, "-m", "tests.fakes.ranks", f"{source}:{function.__name__}"]
                processes.append(
                    subprocess.Popen(
                        [*command, str(rank), str(size), str(folder)],
                        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    )
                )  # fmt: skip
        yield Ranks(tuple(processes), folder)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()


def say(folder: Path, word: str) -> None:
    """From a rank, to the test."""
    (folder / word).touch()


def hear(folder: Path, word: str) -> None:
    """From a rank: waits for the test's word."""
    deadline = time.monotonic() + SECONDS
    while not (folder / word).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the test did not say {word}")
        time.sleep(0.005)


def main(place: str, rank: int, size: int, folder: Path) -> None:
    source, _, name = place.rpartition(":")
    spec = importlib.util.spec_from_file_location("ranks_of_a_test", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    arguments = msgspec.msgpack.decode((folder / f"{rank}.arguments").read_bytes())
    result = getattr(module, name)(rank, size, folder, **arguments)
    ready = folder / f"{rank}.ready"
    ready.write_bytes(msgspec.msgpack.encode(result))
    ready.rename(folder / f"{rank}.result")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
