"""Watchdog: a process that cannot leave a collective says which, and ends; one that can is left alone."""

from __future__ import annotations

import time
from pathlib import Path

from backend.parallel.watchdog import HUNG_STATUS, Watchdog
from tests.fakes.ranks import running_ranks


class Queue:
    """A mark that a device reaches, or not."""

    def __init__(self, reached: bool) -> None:
        self.reached = reached

    def query(self) -> bool:
        return self.reached


def describe(what: str, waited: float) -> str:
    return f"rank 1 of 2 waited in {what}"


def hang(rank: int, size: int, folder: Path, marked: bool) -> str:
    watchdog = Watchdog(0.5, describe)
    with watchdog.watching("connect"):
        pass
    watchdog.mark(Queue(True), "all_reduce of 2 bytes")
    time.sleep(1.5)
    assert watchdog.wants_mark
    (folder / "alive").touch()
    if marked:
        watchdog.mark(Queue(False), "all_reduce of 4 bytes")
        time.sleep(60)
    with watchdog.watching("all_reduce of 4 bytes"):
        time.sleep(60)
    return "came back"


def test_what_hangs_ends_the_process_with_a_line(tmp_path: Path) -> None:
    for marked in (False, True):
        with running_ranks(tmp_path / str(marked), 1, hang, marked=marked) as ranks:
            assert ranks.statuses() == (HUNG_STATUS,)
            assert (ranks.folder / "alive").exists()
            assert ranks.log(0).strip() == "rank 1 of 2 waited in all_reduce of 4 bytes"


def test_a_closed_watchdog_has_no_thread() -> None:
    watchdog = Watchdog(0.5, describe)
    watchdog.close()
    with watchdog.watching("connect"):
        time.sleep(0.8)
