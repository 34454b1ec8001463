"""PeerStore: what was probed of these GPUs under this driver, so that later starts need not. Pure files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from backend.hardware.gpu import Gpu
from backend.hardware.peer import PeerPath
from backend.hardware.whole_file import write_whole
from backend.library.locations import cache_home

# Counts changes to what is probed or how: findings of another version are not read.
PROBE_VERSION = 1


class _Record(Struct, frozen=True):
    boot: str
    peers: tuple[PeerPath, ...]


@dataclass(frozen=True, slots=True)
class PeerStore:
    """One small file for a set of GPUs and a driver, in `folder`. A file that cannot be read counts as none.

    boot: tells one start of the computer from another.
    """

    folder: Path
    boot: str

    def read(self, gpus: Sequence[Gpu]) -> tuple[PeerPath, ...] | None:
        """None where nothing was probed, or where a pair failed and the computer was started again since.

        (What is wrong with a pair is mostly a setting of the firmware or the kernel.)
        """
        if len(gpus) < 2:
            return None
        try:
            record = msgspec.msgpack.decode((self.folder / _key(gpus)).read_bytes(), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return None
        stale = record.boot != self.boot and not all(peer.works for peer in record.peers)
        return None if stale else record.peers

    def write(self, gpus: Sequence[Gpu], peers: tuple[PeerPath, ...]) -> None:
        """Whole or not at all. Where it cannot be written, the next start probes again."""
        write_whole(self.folder / _key(gpus), msgspec.msgpack.encode(_Record(self.boot, peers)))


def default_peer_store() -> PeerStore:
    return PeerStore(cache_home() / "peers", boot_id())


def boot_id() -> str:
    """Tells one start of the computer from another; empty where the kernel does not."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _key(gpus: Sequence[Gpu]) -> str:
    """A file name that changes with the driver and the GPUs."""
    facts = (str(PROBE_VERSION), gpus[0].driver, *sorted(gpu.uuid for gpu in gpus))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()
