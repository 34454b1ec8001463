"""Measures how fast this machine's main memory, its models' disk and the way to its GPUs are, once for a machine.

Programs of their own do it, within bounded time: what hangs or fails is only not known. `rate_store` remembers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.hardware.nvml import ask, program
from backend.hardware.rate_store import RateStore, default_rate_store
from backend.hardware.rates import CopyRate, HostRates
from backend.library.locations import hub_cache

# Seconds: the program takes two at most, unless the disk hangs; importing torch and making contexts takes longer.
_HOST, _COPIES, _EACH = 15.0, 60.0, 5.0

_Kind = TypeVar("_Kind")


class HostReport(Struct, frozen=True):
    """What the program without torch tells; units as in HostRates."""

    memory: float = 0.0
    disk: float = 0.0
    disk_direct: bool = False


def measured(
    machine: Machine,
    store: RateStore | None = None,
    folder: Path | None = None,
    host: tuple[str, ...] = (),
    copies: tuple[str, ...] = (),
) -> Machine:
    """The machine with its rates: measured since the computer was started, or now, in some 2 s and 5 with GPUs.

    Rates that were measured while the machine was busy, or without copies to its GPUs, are measured again.

    folder: of the models; None takes the library's. Tests replace the store and the commands `host` and `copies`.
    """
    store, folder = store or default_rate_store(), folder or hub_cache()
    known = store.read(machine.cpu, machine.gpus, fresh=True)
    if known is None or known.busy or known.disk_folder != str(folder) or len(known.copies) < len(machine.gpus):
        known = measure(machine, folder, host, copies)
        if known.memory:
            store.write(machine.cpu, machine.gpus, known)
    return replace(machine, rates=known)


def measure(machine: Machine, folder: Path, host: tuple[str, ...] = (), copies: tuple[str, ...] = ()) -> HostRates:
    """Measures now, whatever is remembered."""
    command = (*(host or program("backend.hardware.probe_host")), str(folder), str(machine.cpu.usable_cores))
    busy = os.getloadavg()[0] > machine.cpu.usable_cores
    report = _told(ask(command, _HOST), HostReport) or HostReport()
    return HostRates(
        memory=report.memory,
        disk=report.disk,
        disk_direct=report.disk_direct,
        disk_folder=str(folder),
        copies=_copies(machine.gpus, copies),
        busy=busy,
    )


def _copies(gpus: Sequence[Gpu], command: tuple[str, ...]) -> tuple[CopyRate, ...]:
    if not gpus:
        return ()
    command = (*(command or program("backend.hardware.probe_copies")), str(len(gpus)))
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    rates = _told(ask(command, _COPIES + _EACH * len(gpus), shown), list[tuple[float, float]]) or []
    return tuple(CopyRate(gpu.uuid, *rate) for gpu, rate in zip(gpus, rates, strict=False))


def _told(asked: tuple[bytes, str] | None, kind: type[_Kind]) -> _Kind | None:
    """What a program wrote; None where it hung, failed, or told nonsense."""
    if asked is None:
        return None
    try:
        return msgspec.json.decode(asked[0], type=kind)
    except msgspec.MsgspecError:
        return None
