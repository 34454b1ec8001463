"""Works for tests: well-known models divided over GPUs that are not there."""

from __future__ import annotations

from backend.hardware.gpu_table import gpu_facts
from backend.planner.links import Link
from backend.planner.model_facts import ModelFacts
from backend.planner.shares import of_rank, share_out
from backend.planner.timing.device_speed import DeviceSpeed, NumberKind, kind_speed
from backend.planner.timing.work import RankWork, StageWork, Work

_BYTES: dict[NumberKind, float] = {"bf16": 2, "fp8": 1, "int8": 1, "fp4": 0.5625}


def kind(name: str) -> DeviceSpeed:
    """A kind of GPU by a part of its name."""
    facts = gpu_facts(name)
    assert facts is not None, name
    return kind_speed(facts)


H100, A100 = kind("NVIDIA H100 80GB HBM3"), kind("NVIDIA A100-SXM4-80GB")
L40S, RTX_3090 = kind("NVIDIA L40S"), kind("NVIDIA GeForce RTX 3090")
NVLINK = Link("nvlink", 450.0, True, "NVLink")
PCIE_4 = Link("pcie", 31.5, False, "PCIe")
STAGED = Link("host", 31.5, False, "PCIe through main memory")


def stage_of(
    facts: ModelFacts,
    devices: tuple[DeviceSpeed, ...],
    link: Link | None = None,
    number: NumberKind = "bf16",
    experts: str = "tensor",
) -> StageWork:
    """All layers, in even parts; weights in the number kind, K and V in 16 bits."""
    shares = share_out(facts, [1.0] * len(devices), "expert" if experts == "expert" else "tensor")
    return StageWork(
        tuple(_rank(of_rank(facts, shares, rank), device, number) for rank, device in enumerate(devices)), link
    )


def work_of(
    facts: ModelFacts,
    devices: tuple[DeviceSpeed, ...],
    link: Link | None = None,
    number: NumberKind = "bf16",
    experts: str = "tensor",
    replicas: int = 1,
) -> Work:
    """One stage."""
    whole = max((part.count for part in facts.experts), default=0) if experts == "expert" else 0
    stage = stage_of(facts, devices, link, number, experts)
    return Work((stage,), facts.hidden, number=number, replicas=replicas, experts=whole)


def _rank(share: ModelFacts, device: DeviceSpeed, number: NumberKind) -> RankWork:
    linears = share.parameters - share.vocabulary_parameters
    elements = sum(layer.kv_heads * (layer.key_size + layer.stored_values) for layer in share.layers)
    return RankWork(share, device, int(linears * _BYTES[number] + share.vocabulary_parameters * 2), 2 * elements)
