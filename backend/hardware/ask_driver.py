"""Describes all GPUs through NVML, as JSON on standard output: a program of its own, which hangs where the driver does.

`nvml` starts it, and bounds its time. One GPU that does not answer does not keep the others from being described.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import msgspec
import pynvml

from backend.hardware.ask_health import ask_health
from backend.hardware.ask_holders import ask_holders
from backend.hardware.ask_links import ask_links
from backend.hardware.ask_sharing import ask_instances, ask_mode, is_mig, is_virtual, mps_waits
from backend.hardware.gpu import Gpu, GpuFault, GpuReading
from backend.hardware.nvml_value import value_or

# Bits of a transfer over a memory bus at each tick of its clock: NVML tells half of what sheets of data name.
_TRANSFERS = 2


def ask_driver() -> GpuReading:
    """Reads all GPUs in this process."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReading(problem=f"The NVIDIA driver is installed but does not answer: {error}.")
    try:
        return read_all()
    except pynvml.NVMLError as error:
        return GpuReading(problem=f"The NVIDIA driver fails to describe a GPU: {error}.")
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def read_all(links: bool = True) -> GpuReading:
    """All GPUs of an NVML that is initialized, with the ways between them if `links`.

    Raises NVMLError where the driver cannot be asked at all.
    """
    driver = str(pynvml.nvmlSystemGetDriverVersion())
    version = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    cuda = (version // 1000, version % 1000 // 10)
    handles: dict[int, Any] = {}
    gpus: list[Gpu] = []
    faults: list[GpuFault] = []
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(_gpu(handle, index, driver, cuda))
            handles[index] = handle
        except pynvml.NVMLError as error:
            faults.append(_fault(index, error))
    return GpuReading(tuple(gpus), "", ask_links(handles) if links else (), tuple(faults))


def _fault(index: int, error: Any) -> GpuFault:
    if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
        return GpuFault(index, "", f"GPU {index} has fallen off the bus; the machine has to be restarted.")
    if error.value == pynvml.NVML_ERROR_RESET_REQUIRED:
        return GpuFault(index, "", f"GPU {index} has stopped and needs a reset.")
    return GpuFault(index, "", f"GPU {index} cannot be described by the driver: {error}.")


def _gpu(handle: Any, index: int, driver: str, cuda: tuple[int, int]) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    holders = ask_holders(handle)
    mig = is_mig(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        total=int(memory.total),
        free=int(memory.free),
        capability=(int(major), int(minor)),
        driver=driver,
        cuda=cuda,
        holders=holders,
        bus_id=value_or("", lambda: _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
        pcie_generation=value_or(0, lambda: int(pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle))),
        # The generation sinks while nothing is to do, the width does not: it is that of the slot.
        pcie_width=value_or(0, lambda: int(pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle))),
        bandwidth=value_or(0.0, lambda: _bandwidth(handle)),
        health=ask_health(handle),
        mode=ask_mode(handle),
        mig=mig,
        instances=ask_instances(handle) if mig else (),
        mps=mps_waits() or any(holder.kind == "mps" for holder in holders),
        virtual=is_virtual(handle),
    )


def _bandwidth(handle: Any) -> float:
    """GB/s of the memory: its clock in MHz, the width of its bus in bits, two transfers a tick."""
    clock = int(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM))
    return clock * 1e6 * int(pynvml.nvmlDeviceGetMemoryBusWidth(handle)) / 8 * _TRANSFERS / 1e9


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(ask_driver()))
