"""NVIDIA's GPUs as their driver describes them, asked in a process of its own that may hang without harm."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from contextlib import suppress

import msgspec
from msgspec import Struct

_TIMEOUT = 15.0  # seconds; a GPU that wakes from power-down takes several


class GpuHolder(Struct, frozen=True):
    """A process that holds a GPU's memory; `name` is empty, `bytes` None where nobody tells."""

    pid: int
    name: str
    bytes: int | None


class Gpu(Struct, frozen=True):
    """One GPU.

    Attributes:
        index: NVML's, in order of PCI bus.
        uuid: as CUDA_VISIBLE_DEVICES accepts it.
        name: NVIDIA's.
        total, free: bytes of device memory.
        capability: compute capability, major and minor.
        driver: version of the driver.
        cuda: newest CUDA version that the driver serves, major and minor.
        holders: processes that hold its memory.
    """

    index: int
    uuid: str
    name: str
    total: int
    free: int
    capability: tuple[int, int]
    driver: str = ""
    cuda: tuple[int, int] = (0, 0)
    holders: tuple[GpuHolder, ...] = ()


class GpuReading(Struct, frozen=True):
    """The GPUs, or why the driver could not be asked; no `problem` where no driver is installed."""

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def read_gpus(timeout: float = _TIMEOUT, command: tuple[str, ...] = ()) -> GpuReading:
    """Asks the driver within `timeout` seconds and does not raise. Tests replace the asking `command`."""
    if not command:
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return GpuReading()
        # By path and without the current folder in front: a person's own folder may have a package `backend`.
        command = (sys.executable, "-P", __file__)
    asking = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = asking.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        asking.kill()
        # A process stuck inside the driver cannot be killed; it is left behind, unwaited for.
        with suppress(subprocess.TimeoutExpired):
            asking.communicate(timeout=1.0)
        return GpuReading(problem=f"The NVIDIA driver did not answer within {timeout:.0f} s.")
    try:
        return msgspec.json.decode(output, type=GpuReading)
    except msgspec.MsgspecError:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit status {asking.returncode}"
        return GpuReading(problem=f"Asking the NVIDIA driver failed: {reason}")


def ask_driver() -> GpuReading:
    """Reads all GPUs through NVML, in this process; may hang where the driver does."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReading(problem=f"The NVIDIA driver is installed but does not answer: {error}.")
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        version = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        cuda = (version // 1000, version % 1000 // 10)
        gpus = [_gpu(index, driver, cuda) for index in range(int(pynvml.nvmlDeviceGetCount()))]
    except pynvml.NVMLError as error:
        return GpuReading(problem=f"The NVIDIA driver fails to describe a GPU: {error}.")
    finally:
        pynvml.nvmlShutdown()
    return GpuReading(tuple(gpus))


def _gpu(index: int, driver: str, cuda: tuple[int, int]) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
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
        holders=_holders(handle),
    )


def _holders(handle: object) -> tuple[GpuHolder, ...]:
    import psutil
    import pynvml

    holders: list[GpuHolder] = []
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:  # not every GPU and container lets one ask
        return ()
    for process in processes:
        name = ""
        with suppress(psutil.Error):
            name = psutil.Process(process.pid).name()
        held = process.usedGpuMemory
        holders.append(GpuHolder(int(process.pid), name, None if held is None else int(held)))
    return tuple(holders)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(ask_driver()))
