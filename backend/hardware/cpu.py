"""The processor: its name, what of it this process may use, and the instruction sets that decide a dtype."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
from msgspec import Struct

# The names of /proc/cpuinfo, x86 ("flags") and ARM ("Features").
DECIDING = ("amx_bf16", "avx512_bf16", "bf16", "avx512f", "avx512_vnni", "avx2", "i8mm", "asimd")
_NATIVE_BFLOAT16 = frozenset({"amx_bf16", "avx512_bf16", "bf16"})


class Cpu(Struct, frozen=True):
    """The processor as this process may use it.

    Attributes:
        name: as the maker calls it.
        cores: physical cores within the affinity mask.
        threads: logical processors within the affinity mask.
        quota: processors' worth of time that a cgroup allows; None without a limit.
        features: those of `DECIDING` that it has.
    """

    name: str
    cores: int
    threads: int
    quota: float | None = None
    features: tuple[str, ...] = ()

    @property
    def usable_cores(self) -> int:
        """Threads that compute without sharing a core or hitting the quota; at least 1."""
        return max(1, self.cores if self.quota is None else min(self.cores, int(self.quota)))

    @property
    def native_bfloat16(self) -> bool:
        return not _NATIVE_BFLOAT16.isdisjoint(self.features)


def read_cpu(quota: float | None = None, root: Path = Path("/")) -> Cpu:
    """Reads the processor's facts. `root` is where /proc and /sys lie."""
    usable = sorted(os.sched_getaffinity(0))
    name, features = _cpuinfo(root)
    return Cpu(
        name=name or platform.processor() or platform.machine(),
        cores=_physical_cores(usable, root),
        threads=len(usable),
        quota=quota,
        features=tuple(feature for feature in DECIDING if feature in features),
    )


def _cpuinfo(root: Path) -> tuple[str, frozenset[str]]:
    """The first processor's name and features."""
    name, features = "", frozenset[str]()
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, features
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            features = frozenset(value.split())
    return name, features


def _physical_cores(usable: list[int], root: Path) -> int:
    """Distinct cores behind the usable logical processors."""
    cores: set[tuple[str, str]] = set()
    for number in usable:
        topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
        try:
            package = (topology / "physical_package_id").read_text().strip()
            cores.add((package, (topology / "core_id").read_text().strip()))
        except OSError:
            return min(len(usable), psutil.cpu_count(logical=False) or len(usable))
    return max(1, len(cores))
