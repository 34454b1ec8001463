"""DeviceSpeed: how fast a device reads its memory and multiplies, as built. What is reached of it is `efficiency`'s."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from backend.hardware.cpu import Cpu
from backend.hardware.gpu import Gpu
from backend.hardware.gpu_table import GpuFacts, gpu_facts

# Kinds of numbers that products are computed in; float16 counts as bf16.
NumberKind = Literal["bf16", "fp8", "int8", "fp4"]
Family = Literal["volta", "ampere", "hopper", "blackwell", "graphics", "other", "processor"]

_KINDS: tuple[NumberKind, ...] = ("bf16", "fp8", "int8", "fp4")
# "NVIDIA A100-SXM4-40GB MIG 3g.20gb": three of seven parts.
_SLICE = re.compile(r"MIG (\d)g\.")
# GB/s of memory where the driver does not tell, and the table does not know the GPU: what one of the middle has.
UNKNOWN_BANDWIDTH = 600.0
# TFLOP/s for a TB/s of memory where nobody tells: RTX 3090 has 76, later cards of the middle 110 to 420.
_PRODUCTS_PER_BANDWIDTH = 75.0
# GB/s of memory and TFLOP/s of products for one core; measured on two cores of an EPYC 9R14 (tests/bench/README.md):
# 30 GB/s, and 0.43 TFLOP/s in bfloat16. Others are by the widths of their vectors. A socket has no more than its
# channels give.
_CORE_BANDWIDTH, _SOCKET_BANDWIDTH = 15.0, 200.0
_CORE_PRODUCTS = (
    ("amx_bf16", 0.8),
    ("avx512_bf16", 0.215),
    ("bf16", 0.06),
    ("avx512f", 0.1),
    ("avx2", 0.05),
)
_LEAST_PRODUCTS = 0.02


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """One device as built.

    Attributes:
        name: for people.
        memory: GB/s of its memory.
        bf16, fp8, int8, fp4: TFLOP/s of dense products; None where it multiplies none of that kind itself.
        family: what its efficiencies are known by.
    """

    name: str
    memory: float
    bf16: float
    fp8: float | None = None
    int8: float | None = None
    fp4: float | None = None
    family: Family = "other"

    def products(self, kind: NumberKind) -> float:
        """TFLOP/s of that kind; of bf16 where the device multiplies none of it, since weights are widened then."""
        return {"bf16": self.bf16, "fp8": self.fp8, "int8": self.int8, "fp4": self.fp4}[kind] or self.bf16

    def multiplies(self, kind: NumberKind) -> NumberKind:
        """The kind that its products are computed in, where weights are of `kind`."""
        return kind if kind == "bf16" or getattr(self, kind) else "bf16"


def device_speed(gpu: Gpu) -> DeviceSpeed:
    """The table's figures of a GPU, its driver's before the table's, and estimates where neither tells."""
    facts = gpu_facts(gpu.name)
    memory = gpu.bandwidth or (facts.mem_bw_gbs if facts else UNKNOWN_BANDWIDTH)
    if facts is None:
        return DeviceSpeed(gpu.name, memory, memory * _PRODUCTS_PER_BANDWIDTH / 1000, family=_family(gpu.capability))
    return _part(_of_facts(facts, memory), gpu, facts)


def kind_speed(facts: GpuFacts) -> DeviceSpeed:
    """The same of a kind of GPU that is not here."""
    return _of_facts(facts, facts.mem_bw_gbs)


def processor_speed(cpu: Cpu, memory: float | None = None, ranks: int = 1) -> DeviceSpeed:
    """What one of `ranks` processes has of a processor; `memory`: GB/s of the whole, where it was measured."""
    cores = cpu.usable_cores
    rate = memory or min(_SOCKET_BANDWIDTH, _CORE_BANDWIDTH * cores)
    core = next((speed for feature, speed in _CORE_PRODUCTS if feature in cpu.features), _LEAST_PRODUCTS)
    return DeviceSpeed(cpu.name, rate / ranks, core * cores / ranks, family="processor")


def _of_facts(facts: GpuFacts, memory: float) -> DeviceSpeed:
    return DeviceSpeed(
        facts.name,
        memory,
        facts.tflops_bf16_dense or memory * _PRODUCTS_PER_BANDWIDTH / 1000,
        facts.tflops_fp8_dense,
        facts.tops_int8_dense,
        facts.tflops_fp4_dense,
        _family(_capability(facts.compute_capability)),
    )


def _part(whole: DeviceSpeed, gpu: Gpu, facts: GpuFacts) -> DeviceSpeed:
    """Of a GPU that MIG divides, the part: its sevenths of processors, and bandwidth as its memory."""
    slices = _SLICE.search(gpu.name)
    if slices is None:
        return whole
    part = min(1.0, int(slices[1]) / 7)
    products = {kind: rate * part for kind in _KINDS if (rate := getattr(whole, kind)) is not None}
    memory = whole.memory * min(1.0, gpu.total / (facts.mem_total_gib_reported * (1 << 30)))
    return replace(whole, name=gpu.name, memory=memory, **products)


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _family(capability: tuple[int, int] | None) -> Family:
    """By compute capability: GPUs with stacked memory by generation, all others together."""
    if capability is None:
        return "other"
    known: dict[tuple[int, int], Family] = {(7, 0): "volta", (8, 0): "ampere", (9, 0): "hopper"}
    if capability in known:
        return known[capability]
    return "blackwell" if capability[0] in (10, 11) else "graphics"
