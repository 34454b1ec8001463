"""Host: one machine of a test: its address, folders and processes. What joins several is the business of Hosts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil

from backend.library.locations import cache_home

ROOT = Path(__file__).parents[2]
# By this variable the processes of a host are known, and those that they start.
MARK = "SHARDWISE_TEST_HOST"
_FOLDERS = {
    "HOME": "home",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
    "XDG_RUNTIME_DIR": "run",
    "TMPDIR": "tmp",
}
# What all of them may share: what the processor's kernels and rates are is the same on one machine.
Found = TypeVar("Found")
_SHARED = ("numba", "rates", "ranks", "facts", "derived")


class UnsupportedError(RuntimeError):
    """These hosts cannot do that; says which could."""


@dataclass(frozen=True)
class Listening:
    """A socket that waits for others: TCP that listens, or UDP that is bound. `program` as its process calls itself."""

    address: str
    port: int
    pid: int
    program: str


@dataclass
class Host(ABC):
    """One machine, with a home, caches, settings and a runtime folder of its own."""

    name: str
    address: str
    folder: Path
    extra: dict[str, str] = field(default_factory=dict)
    _spawned: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for place in _FOLDERS.values():
            (self.folder / place).mkdir(mode=0o700, parents=True)
        cache = self.folder / "cache" / "shardwise"
        cache.mkdir()
        for name in _SHARED:
            (cache_home() / name).mkdir(parents=True, exist_ok=True)
            (cache / name).symlink_to(cache_home() / name)

    @property
    def mark(self) -> str:
        """What no other host of this machine is called."""
        return str(self.folder)

    def environment(self) -> dict[str, str]:
        """What its user's shell has: nothing of the tests' own settings."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("SHARDWISE_", "XDG_", "RAY_"))
        }
        kept |= {name: str(self.folder / place) for name, place in _FOLDERS.items()}
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept.get('PATH', os.defpath)}"
        kept["PYTHONPATH"] = str(ROOT)
        kept[MARK] = self.mark
        return kept | self.extra

    def give_starter(self) -> None:
        """Puts the starter model into its cache; it must be in the tests' own."""
        source = cache_home() / "starter"
        shutil.copytree(source, self.folder / "cache" / "shardwise" / "starter", copy_function=_linked)

    def spawn(self, *command: str, log: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Starts a program there, in a session of its own; what it says goes to `log`."""
        environment = self.environment() | options.pop("environment", {})
        with contextlib.ExitStack() as files:
            output = files.enter_context(log.open("ab")) if log else subprocess.DEVNULL
            settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            process = subprocess.Popen[bytes](
                self._inside(command), cwd=ROOT, env=environment, start_new_session=True, **(settings | options)
            )
        self._spawned.append(process)
        return process

    def run(self, *command: str, seconds: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a program there to its end, and returns what it said; the caller looks at its exit status."""
        environment = self.environment() | options.pop("environment", {})
        return subprocess.run(
            self._inside(command), cwd=ROOT, env=environment, check=False, text=True, timeout=seconds,
            capture_output=True, stdin=subprocess.DEVNULL, **options,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All that run there, the youngest last; those that have died and were not waited for are left out."""
        found = [each for each in self._candidates() if alive(each)]
        return sorted(found, key=lambda each: each.create_time())

    def listening(self) -> list[Listening]:
        """All sockets of its processes on which somebody could call."""
        pids = [str(process.pid) for process in self.processes()]
        # The kernel tells of the sockets of the namespace in which it is asked.
        shown = self.run(sys.executable, "-m", "tests.hosts.listening", *pids)
        return [Listening(*each) for each in json.loads(shown.stdout)]

    def signal_all(self, number: signal.Signals) -> None:
        """As if the machine had lost its power (SIGKILL), or stood still (SIGSTOP)."""
        for process in reversed(self.processes()):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def forget_spawned(self) -> None:
        """Closes the pipes of what was spawned, which is dead."""
        for process in self._spawned:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    # What was not written yet has no reader any more.
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._spawned.clear()

    def ended(self, seconds: float) -> list[psutil.Process]:
        """Waits until nothing runs there any more; what still does after so many seconds."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        return left

    @abstractmethod
    def _inside(self, command: tuple[str, ...]) -> list[str]:
        """The command that runs it there."""

    @abstractmethod
    def _candidates(self) -> list[psutil.Process]:
        """At least all processes that run there."""


class Hosts(Protocol):
    """Machines that reach each other. Those that cannot do something raise UnsupportedError."""

    def __getitem__(self, name: str) -> Host: ...

    def __iter__(self) -> Iterator[Host]: ...

    def entered(self, name: str) -> AbstractContextManager[None]:
        """Sockets that this thread makes in the block are that host's."""
        ...

    def cut(self, name: str) -> None:
        """From now on nothing reaches it or leaves it, and nobody is told."""
        ...

    def part(self, one: str, other: str) -> None:
        """From now on nothing passes between these two, and nobody is told; others reach both."""
        ...

    def heal(self) -> None:
        """All links are whole and fast again."""
        ...

    def shape(self, name: str, delay: float = 0.0, bandwidth: float | None = None) -> None:
        """What it sends and what is sent to it takes so many seconds each way, at so many bytes a second at most."""
        ...

    def close(self) -> None:
        """Ends all that runs there, and takes everything away."""
        ...


def end_all(hosts: Iterable[Host], seconds: float = 10.0) -> None:
    """Kills whatever still runs on them, also what is being started meanwhile."""
    hosts = list(hosts)
    until = time.monotonic() + seconds
    while any(each.processes() for each in hosts) and time.monotonic() < until:
        for each in hosts:
            each.signal_all(signal.SIGKILL)
        time.sleep(0.05)
    for each in hosts:
        each.forget_spawned()


def wait_for(what: Callable[[], Found | None], seconds: float, why: Callable[[], str] = lambda: "") -> Found:
    """The first thing that `what` returns which is not None or false; fails with `why` where nothing came."""
    until = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > until:
            raise AssertionError(f"It did not come within {seconds:.0f} s. {why()}")
        time.sleep(0.05)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that died and was not waited for does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
