"""Processors near a GPU, from what the kernel says of NUMA nodes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from backend.workers.near_processors import node_processors, parse_processors, stay_near


def system(root: Path, node: int, text: str) -> Path:
    folder = root / f"sys/devices/system/node/node{node}"
    folder.mkdir(parents=True)
    (folder / "cpulist").write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0-1,64-65\n", {0, 1, 64, 65})],
)
def test_lists_of_processors_are_read(text: str, numbers: set[int]) -> None:
    assert parse_processors(text) == numbers


def test_what_the_system_does_not_tell_is_no_processor(tmp_path: Path) -> None:
    assert node_processors(0, tmp_path) == frozenset()
    assert node_processors(1, system(tmp_path, 1, "many")) == frozenset()


def test_a_thread_stays_on_its_node_and_nowhere_where_it_may_not(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    one = min(usable)
    system(tmp_path, 0, f"{one},{max(usable) + 50}\n")
    system(tmp_path, 1, f"{max(usable) + 50}\n")
    found: list[set[int]] = []

    def run() -> None:
        stay_near(1, tmp_path)
        found.append(os.sched_getaffinity(0))
        stay_near(0, tmp_path)
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)  # its affinity ends with it
    thread.start()
    thread.join()
    assert found == [usable, {one}]
