"""GpuFacts: what is known of kinds of GPUs, whether they are here or not; the table lies in `assets/hardware`."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec
from msgspec import Struct


class GpuPrice(Struct, frozen=True):
    """Dollars for an hour: `kind` is the sort of offer, `source` whose, with its date as far as anybody says."""

    usd: float
    kind: str
    source: str


class GpuFacts(Struct, frozen=True):
    """One kind of GPU. None where nobody confirmed a figure; `unconfirmed` names those that were seen in no source.

    Attributes:
        name: as NVML tells it; `nvml_match` is the part of it that no other kind has.
        mem_total_gib_reported: device memory as CUDA reports it.
        mem_bw_gbs: GB/s of its memory as built.
        tflops_bf16_dense, tflops_fp8_dense, tflops_fp4_dense, tops_int8_dense: of dense products, 10^12 a second.
        compute_capability: "9.0"; AMD's are names.
        nvlink_gbs_bidir_per_gpu: both directions together.
        pcie: "5.0 x16".
    """

    name: str
    nvml_match: str
    mem_total_gib_reported: float
    mem_bw_gbs: float
    compute_capability: str
    pcie: str
    source: tuple[str, ...]
    mem_total_mib_nvml: int | None = None
    mem_note: str = ""
    tflops_bf16_dense: float | None = None
    tflops_fp8_dense: float | None = None
    tops_int8_dense: float | None = None
    tflops_fp4_dense: float | None = None
    tdp_w: int | None = None
    nvlink_gen: int | str | None = None
    nvlink_gbs_bidir_per_gpu: float | None = None
    price_usd_per_hour: tuple[GpuPrice, ...] = ()
    unconfirmed: tuple[str, ...] = ()


@cache
def gpu_table() -> tuple[GpuFacts, ...]:
    """Every kind, in the table's order."""
    text = (resources.files("assets") / "hardware" / "gpus.jsonl").read_bytes()
    return tuple(msgspec.json.decode(line, type=GpuFacts) for line in text.splitlines() if line)


@cache
def gpu_facts(name: str) -> GpuFacts | None:
    """The kind that a driver calls `name`: the longest match; None where the table has none."""
    found = [facts for facts in gpu_table() if facts.nvml_match.lower() in name.lower()]
    return max(found, key=lambda facts: len(facts.nvml_match), default=None)
