"""What is known of NVIDIA's GPUs and of the ways between them, as frozen plain data; `ask_driver` fills it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

# The nearest point that two GPUs share: a switch of NVLinks, NVLinks of their own, or a level of PCIe.
Way = Literal["nvswitch", "nvlink", "board", "switch", "switches", "host bridge", "node", "system", "unknown"]


class GpuHolder(Struct, frozen=True):
    """A process that holds a GPU's memory; `name` is empty, `bytes` None where nobody tells."""

    pid: int
    name: str
    bytes: int | None


class GpuHealth(Struct, frozen=True):
    """How a GPU is now. What the driver or the GPU does not tell is 0, False or None.

    Attributes:
        uncorrectable, correctable: ECC errors since the driver was loaded.
        retirement_pending: a page of its memory waits for a reset to be taken out of use.
        remap_pending, remap_failed: the same of a row that is to be replaced by a spare one; that none was left.
        throttled: why it runs slower than it could, of those that are faults: heat and power brakes.
        temperature: degrees Celsius.
    """

    uncorrectable: int = 0
    correctable: int = 0
    retirement_pending: bool = False
    remap_pending: bool = False
    remap_failed: bool = False
    throttled: tuple[str, ...] = ()
    temperature: int | None = None


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
        bus_id: its place on PCI, domain:bus:device.function; empty where nobody tells.
        numa_node: the processor whose memory is near; None where the machine has one, or does not tell.
        pcie_generation, pcie_width: of its slot; 0 where nobody tells.
        bandwidth: GB/s of its memory as built; 0 where nobody tells.
        health: how it is now.
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
    bus_id: str = ""
    numa_node: int | None = None
    pcie_generation: int = 0
    pcie_width: int = 0
    bandwidth: float = 0.0
    health: GpuHealth = GpuHealth()


class GpuLink(Struct, frozen=True):
    """What the driver says of the way between two GPUs.

    Attributes:
        first, second: their indices, the smaller first.
        way: the nearest point they share.
        nvlink: GB/s in one direction over NVLink; 0 without.
        peer: whether the driver claims that one may write to the other.
    """

    first: int
    second: int
    way: Way
    nvlink: float = 0.0
    peer: bool = False


class GpuFault(Struct, frozen=True):
    """A GPU that is there and cannot be used: which, and why, as a sentence."""

    index: int
    uuid: str
    what: str


class GpuReading(Struct, frozen=True):
    """The GPUs, or why the driver could not be asked; no `problem` where no driver is installed.

    `faults` are of GPUs that could not be described at all; those of the others follow from their health.
    """

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    links: tuple[GpuLink, ...] = ()
    faults: tuple[GpuFault, ...] = ()
