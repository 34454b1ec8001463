"""Main memory as this process may use it: the machine's, or what a cgroup leaves of it."""

from __future__ import annotations

import psutil
from msgspec import Struct

from backend.hardware.cgroup import CgroupLimits


class Memory(Struct, frozen=True):
    """Bytes of main memory.

    Attributes:
        total: the machine's, or the cgroup's limit where that is smaller.
        available: what can be taken now without swapping or passing the limit.
        limited: whether a cgroup sets `total`.
    """

    total: int
    available: int
    limited: bool = False


def read_memory(limits: CgroupLimits) -> Memory:
    """The smaller of the machine's and the cgroup's, for the total and for what is left."""
    machine = psutil.virtual_memory()
    if limits.memory is None or limits.memory >= machine.total:
        return Memory(machine.total, machine.available)
    left = max(0, limits.memory - limits.memory_used)
    return Memory(limits.memory, min(machine.available, left), limited=True)
