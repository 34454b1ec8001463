"""RateStore: the rates that were measured on this machine, so that plans need not measure. Pure files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from backend.hardware.cpu import Cpu
from backend.hardware.gpu import Gpu
from backend.hardware.peer_store import boot_id
from backend.hardware.rates import HostRates
from backend.hardware.whole_file import write_whole
from backend.library.locations import cache_home

# Counts changes to what is measured or how: rates of another version are not read.
_VERSION = 1


class _Record(Struct, frozen=True):
    boot: str
    rates: HostRates


@dataclass(frozen=True, slots=True)
class RateStore:
    """One small file for a processor, what of it may be used, and its GPUs, in `folder`.

    boot: tells one start of the computer from another.
    """

    folder: Path
    boot: str

    def read(self, cpu: Cpu, gpus: Sequence[Gpu], fresh: bool = False) -> HostRates | None:
        """None where nothing was measured, or, if `fresh`, nothing since the computer was started."""
        try:
            record = msgspec.msgpack.decode((self.folder / _key(cpu, gpus)).read_bytes(), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return None
        return None if fresh and record.boot != self.boot else record.rates

    def write(self, cpu: Cpu, gpus: Sequence[Gpu], rates: HostRates) -> None:
        """Whole or not at all."""
        write_whole(self.folder / _key(cpu, gpus), msgspec.msgpack.encode(_Record(self.boot, rates)))


def default_rate_store() -> RateStore:
    return RateStore(cache_home() / "rates", boot_id())


def _key(cpu: Cpu, gpus: Sequence[Gpu]) -> str:
    """A file name that changes with the processor and the GPUs."""
    facts = (str(_VERSION), cpu.name, str(cpu.usable_cores), *sorted(f"{gpu.uuid} {gpu.driver}" for gpu in gpus))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()
