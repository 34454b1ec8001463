"""Kills the engine at random moments of a load that uses all tiers.

    python -m tests.faults.cache_kills               50 kills, some minutes
    python -m tests.faults.cache_kills --times 5

After each kill the engine must come back by itself on the same folder, answers must be those of an undisturbed server
in float32, pages must be conserved, and no record on disk may be broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from kvcache.tiers.folder import disk_usage
from tests.fakes.processes import RunningServer, running_server
from tests.faults.cache_state import cache_statistics, conserved
from tests.faults.chat_load import ChatLoad, Turn

READY_SECONDS = 120.0
# Different loads, which come round: pages are written, evicted and written again all the time.
LOADS = 6
# Answers are asked for again after so many chats.
AGAIN = 1
# Seconds without requests between rounds, in which the engine writes what it has.
PAUSE = 2.5


@dataclass(frozen=True)
class Expected:
    """A load, and its answers by an undisturbed server."""

    load: ChatLoad
    answers: dict[Turn, str]


class Victim:
    """Loads that run in a thread of their own, in turn, while somebody kills the engine under them."""

    def __init__(self, loads: list[Expected], concurrency: int) -> None:
        self._loads, self._concurrency = loads, concurrency
        self.answers = self.wrong = self.failures = 0
        self.url = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self, url: str) -> None:
        self.url = url
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _loop(self) -> None:
        for one in cycle(self._loads):
            if self._ended.is_set():
                return
            run = one.load.run(
                self.url, concurrency=self._concurrency, again=AGAIN, pause=PAUSE, patience=self._patience
            )
            try:
                given = asyncio.run(run)
            except Exception as error:  # noqa: BLE001 - the round is given up, and counted
                self.failures += 1
                print(f"  a round was given up: {type(error).__name__}: {error}", flush=True)
                continue
            self.answers += len(given)
            for turn, answer in given.items():
                if answer != one.answers[turn]:
                    self.wrong += 1
                    print(f"FAILED: chat {turn}: {answer!r} instead of {one.answers[turn]!r}", flush=True)

    def _patience(self) -> bool:
        self.failures += 1
        return not self._ended.is_set()


def main() -> int:
    options = _options()
    base = ("--dtype", "float32", "--max-context", "1024")
    with tempfile.TemporaryDirectory() as folder:
        print("== answers of an undisturbed server", flush=True)
        with running_server(Path(folder), *base, "--kv-pool", "1GiB") as server:
            loads = [_undisturbed(ChatLoad(options.chats, 3, 200, 16, seed), server.url) for seed in range(LOADS)]
        # Small, so that between two kills pages come to the disk, and push others out.
        sizes = ("--kv-pool", "60MiB", "--host-cache", "12MiB", "--disk-cache", "100MiB")
        return _kill(loads, Path(folder), (*base, *sizes, "--cache-dir", f"{folder}/pages"), options)


def _undisturbed(load: ChatLoad, url: str) -> Expected:
    return Expected(load, asyncio.run(load.run(url, concurrency=4, again=AGAIN)))


def _kill(loads: list[Expected], folder: Path, server: tuple[str, ...], options: Any) -> int:
    choose, problems = random.Random(options.seed), 0
    victim = Victim(loads, concurrency=4)
    with running_server(folder, *server) as running:
        victim.start(running.url)
        for kill in range(1, options.times + 1):
            time.sleep(choose.uniform(0.5, options.longest))
            right = conserved(cache_statistics(running.url))
            problems += not right
            os.kill(running.engine_pid(), signal.SIGKILL)
            back = _back(running)
            outcome = "ok" if right else "FAILED: pages were lost"
            print(f"kill {kill}: {_records(folder)} records on disk, back in {back:.1f} s, {outcome}", flush=True)
        time.sleep(options.longest)
        statistics = cache_statistics(running.url)
        victim.stop()
    stored, evicted = statistics["stored_pages"], statistics["disk_evictions"]
    fetched, rejected = statistics["disk_fetched_pages"], statistics["rejected_records"]
    print(
        f"{options.times} kills: {victim.answers} answers, {victim.wrong} wrong, {victim.failures} requests tried "
        f"again, {stored} pages written, {evicted} evicted, {fetched} read back, "
        f"{rejected} records rejected, {problems} times pages were lost"
    )
    return 1 if victim.wrong or problems or rejected or not victim.answers or not fetched else 0


def _records(folder: Path) -> int:
    return sum(usage.pages for usage in disk_usage(folder / "pages"))


def _back(server: RunningServer) -> float:
    """Seconds until the server, whose engine was just killed, has noticed and serves again."""
    began = time.monotonic()
    server.await_health(503, 5.0)
    server.await_health(200, READY_SECONDS)
    return time.monotonic() - began


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--longest", type=float, default=8.0, help="most seconds between a recovery and the next kill")
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
