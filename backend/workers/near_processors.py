"""Which logical processors are near a GPU, and staying on them: copies to a GPU of another socket are slower."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def parse_processors(text: str) -> frozenset[int]:
    """The numbers of a list as the kernel writes it: "0-3,8" is 0, 1, 2, 3 and 8. Raises ValueError for another."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def node_processors(node: int, root: Path = Path("/")) -> frozenset[int]:
    """The logical processors of a NUMA node; none where the system does not tell. `root` is where /sys lies."""
    try:
        return parse_processors((root / f"sys/devices/system/node/node{node}/cpulist").read_text())
    except (OSError, ValueError):
        return frozenset()


def stay_near(node: int, root: Path = Path("/")) -> None:
    """Keeps this thread, and those that it starts from now on, on the node's processors that it may use, if any."""
    near = node_processors(node, root) & os.sched_getaffinity(0)
    if near:
        with suppress(OSError):
            os.sched_setaffinity(0, near)
