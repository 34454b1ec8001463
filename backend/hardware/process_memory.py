"""ProcessMemory: what this process holds of main memory, as the system counts it. What it is used for, others know."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path

import psutil
from msgspec import Struct

_KIB = 1 << 10
# Pages whose state is asked for at once: a mebibyte of answers.
_ASKED_PAGES = 1 << 20
# Of mincore's answer for a page only the lowest bit has a meaning.
_LOWEST_BIT = bytes(byte & 1 for byte in range(256))


class ProcessMemory(Struct, frozen=True):
    """Bytes of one process at one moment.

    Attributes:
        resident: backed by memory, shared pages included (Rss).
        proportional: with shared pages divided among those who map them (Pss); None where the system does not tell.
        anonymous: of the resident, what no file backs: the process' own data.
        peak: the most that was resident since `forget_peak`, or since the process began where that cannot be forgotten.
    """

    resident: int
    peak: int
    proportional: int | None = None
    anonymous: int | None = None


def read_process_memory(pid: int | None = None) -> ProcessMemory:
    """Of this process, or of another of this user's. Raises OSError or psutil.Error where it has gone."""
    folder = Path("/proc") / ("self" if pid is None else str(pid))
    if not (folder / "status").exists():
        held: int = psutil.Process(pid).memory_info().rss
        return ProcessMemory(held, held)
    status = _fields(folder / "status")
    resident = status["VmRSS"]
    with suppress(OSError, KeyError):
        rolled = _fields(folder / "smaps_rollup")
        # The exact count: the one in `status` lags behind by some pages of each thread.
        resident = rolled["Rss"]
        return ProcessMemory(resident, max(resident, status["VmHWM"]), rolled["Pss"], rolled["Anonymous"])
    return ProcessMemory(resident, max(resident, status.get("VmHWM", 0)))


def forget_peak() -> bool:
    """Lets `peak` begin again at what is resident now; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def return_freed_memory() -> None:
    """Gives the system back what was freed: glibc keeps it for what this process might want next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def touched_bytes(address: int, size: int) -> int | None:
    """How much of this process' memory from `address` on the system has backed; None where it does not tell.

    Counts whole pages of the system, so up to one more at each end than was written.
    """
    if size <= 0:
        return 0
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError):
        return None
    page = mmap.PAGESIZE
    first, last = address // page * page, -(-(address + size) // page) * page
    state = (ctypes.c_ubyte * min(_ASKED_PAGES, (last - first) // page))()
    touched = 0
    while first < last:
        count = min(len(state), (last - first) // page)
        if mincore(ctypes.c_void_p(first), ctypes.c_size_t(count * page), state) != 0:
            return None
        touched += bytes(state)[:count].translate(_LOWEST_BIT).count(1) * page
        first += count * page
    return min(touched, size)


def _fields(path: Path) -> dict[str, int]:
    """The lines `Name:  n kB` of a file of the system's, in bytes."""
    found: dict[str, int] = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[1] == "kB" and parts[0].isdigit():
            found[name] = int(parts[0]) * _KIB
    return found
