"""What is known of NVIDIA's GPUs and of the ways between them, as frozen plain data; `ask_driver` fills it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

# The nearest point that two GPUs share: a switch of NVLinks, NVLinks of their own, or a level of PCIe.
Way = Literal["nvswitch", "nvlink", "board", "switch", "switches", "host bridge", "node", "system", "unknown"]
# Who may compute on a GPU: any number of programs, one at a time, or none.
ComputeMode = Literal["default", "exclusive", "prohibited"]
HolderKind = Literal["compute", "graphics", "mps"]


class GpuHolder(Struct, frozen=True):
    """A process that holds a GPU's memory; `name` is empty, `bytes` None where nobody tells.

    `kind`: what it does there; "mps" is a client of NVIDIA's Multi-Process Service.
    """

    pid: int
    name: str
    bytes: int | None
    kind: HolderKind = "compute"


class GpuInstance(Struct, frozen=True):
    """A part of a GPU that is divided by MIG, with memory and processors of its own.

    Attributes:
        uuid: as CUDA_VISIBLE_DEVICES accepts it ("MIG-...").
        name: the driver's, which ends in its size ("NVIDIA A100-SXM4-40GB MIG 3g.20gb").
        total, free: bytes of its memory.
        holders: processes that hold it.
    """

    uuid: str
    name: str
    total: int
    free: int
    holders: tuple[GpuHolder, ...] = ()


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
        mode: who may compute on it.
        mig: whether MIG divides it: then programs see its `instances`, never the whole.
        mps: whether NVIDIA's Multi-Process Service runs programs on it.
        virtual: whether it is a part of a GPU that a hypervisor shares out (vGPU).
        parent: of an instance that stands for a GPU here, the uuid of the GPU that is divided; else empty.
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
    mode: ComputeMode = "default"
    mig: bool = False
    instances: tuple[GpuInstance, ...] = ()
    mps: bool = False
    virtual: bool = False
    parent: str = ""

    @property
    def hidden(self) -> int:
        """Bytes that are taken by nobody who is named; 0 where a holder does not tell how much it has."""
        if any(holder.bytes is None for holder in self.holders):
            return 0
        return max(0, self.total - self.free - sum(holder.bytes or 0 for holder in self.holders))


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
    """A GPU that is there and cannot be used: which, why, as a sentence, and what to do; empty where nobody knows."""

    index: int
    uuid: str
    what: str
    fix: str = ""


class GpuReading(Struct, frozen=True):
    """The GPUs, or why the driver could not be asked; no `problem` where no driver is installed.

    `faults` are of GPUs that could not be described at all; those of the others follow from their health.
    """

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    links: tuple[GpuLink, ...] = ()
    faults: tuple[GpuFault, ...] = ()
