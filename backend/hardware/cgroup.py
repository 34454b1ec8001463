"""What cgroups (v1, v2) let this process use of processors and memory; reading the machine is `machine`'s."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# v1 says "no limit" with a number near 2**63, rounded to pages.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The tightest limits on the way from this process's group to the root; None where there is none.

    Attributes:
        cpus: processors' worth of time, such as 1.5.
        memory: bytes that the group may use.
        memory_used: bytes that it uses now, without files that the kernel can drop.
    """

    cpus: float | None = None
    memory: int | None = None
    memory_used: int = 0


def read_cgroup(root: Path = Path("/")) -> CgroupLimits:
    """Reads the limits; a missing or unreadable file sets none. `root` is where /proc and /sys lie."""
    cpus: list[float] = []
    memories: list[tuple[int, int]] = []
    for folder in _folders(root, "cpu"):
        quota, period = _cpu_quota(folder)
        if quota is not None and quota > 0 and period:
            cpus.append(quota / period)
    for folder in _folders(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            memories.append((limit, _memory_used(folder)))
    memory, used = min(memories, key=lambda pair: pair[0] - pair[1]) if memories else (None, 0)
    return CgroupLimits(min(cpus, default=None), memory, used)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups, from its own up to the root of the hierarchy."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        names, own = parts[1], PurePosixPath(parts[2])
        if names == "":
            base = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        # Inside a container the path may be the host's, which is not mounted here; the root of the mount
        # still holds.
        for level in (own, *own.parents):
            folder = base / str(level).lstrip("/")
            if ".." not in level.parts and folder.is_dir():
                yield folder


def _cpu_quota(folder: Path) -> tuple[float | None, float]:
    unified = _text(folder / "cpu.max").split()
    if len(unified) == 2:
        return (None if unified[0] == "max" else float(unified[0])), float(unified[1])
    return _number(folder / "cpu.cfs_quota_us"), float(_number(folder / "cpu.cfs_period_us") or 0)


def _memory_used(folder: Path) -> int:
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return max(0, used - int(value))
    return used


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
