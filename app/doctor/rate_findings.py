"""Findings about rates: main memory, the models' disk, and copies to GPUs, as a probe measured them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from app.doctor.finding import Finding
from backend.hardware.gpu import Gpu
from backend.hardware.machine import Machine
from backend.hardware.rates import CopyRate, HostRates
from backend.planner.links import host_bandwidth

# GB/s: a hard disk's. Below it, 16 GB of weights take a minute and more.
_SLOW_DISK = 0.25
# Of what a slot is built for, large copies reach four fifths; half of that is not chance.
_SLOW_COPY = 0.5


def rate_findings(machine: Machine) -> Iterator[Finding]:
    rates = machine.rates
    if not rates.memory:
        yield Finding("rates", "note", "How fast main memory and the disk are could not be measured.")
        return
    cores = machine.cpu.usable_cores
    busy = " Other programs were busy meanwhile: it may be faster." if rates.busy else ""
    what = f"Main memory is copied at {rates.memory:.3g} GB/s, read and written, by {cores} cores.{busy}"
    yield Finding("rates", "ok", what)
    yield _disk(rates)
    for number, gpu in enumerate(machine.gpus):
        found = next((copy for copy in rates.copies if copy.uuid == gpu.uuid), None)
        if found is None:
            what = f"Copies to GPU {number} ({gpu.name}) were not timed: torch cannot use it here."
            yield Finding("rates", "note", what)
        else:
            yield _copies(number, gpu, found)


def _disk(rates: HostRates) -> Finding:
    if not rates.disk:
        return Finding("rates", "note", f"The disk of {rates.disk_folder} could not be read for a measurement.")
    what = f"The disk of {rates.disk_folder} is read at {rates.disk:.3g} GB/s."
    if rates.disk < _SLOW_DISK:
        minutes = 16 / rates.disk / 60
        what += f" A model of 16 GB takes {minutes:.2g} minutes to load."
        return Finding("rates", "warning", what, "Keep models on a faster disk: HF_HOME names the folder.")
    if not rates.disk_direct:
        what += " (Its file system has no reads around the page cache: the disk itself may be slower.)"
    return Finding("rates", "ok", what)


def _copies(number: int, gpu: Gpu, found: CopyRate) -> Finding:
    what = (
        f"GPU {number} ({gpu.name}) is written to from main memory at {found.to_gpu:.3g} GB/s, "
        f"read from at {found.from_gpu:.3g}."
    )
    expected = host_bandwidth(gpu) if gpu.pcie_generation and gpu.pcie_width else 0.0
    if min(found.to_gpu, found.from_gpu) < _SLOW_COPY * expected:
        return Finding(
            "rates",
            "warning",
            f"{what} Its slot (PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width}) should reach {expected:.3g}.",
            "Look after the slot, the riser and the processor that it hangs on (`nvidia-smi topo -m`).",
        )
    return Finding("rates", "ok", what)
