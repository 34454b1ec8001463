"""Plan: one deployment decision as a frozen value a person can read. Deciding it belongs to `decide`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class MemoryTerm(Struct, frozen=True):
    """One term of a rank's memory, in bytes: weights, kv, activations, libraries.

    Ranks of several also have communication, and a processor's host cache.
    """

    name: str
    bytes: int


class Rank(Struct, frozen=True):
    """One rank's device, expected memory by term, and part of the model.

    Attributes:
        device: as torch names it; a GPU's number counts in `Plan.visible_gpus`.
        attention, mlp: its part of attention heads, and of MLPs and the vocabulary, relative to the other ranks'
            (see `backend.parallel.division`).
        page_bytes: bytes of its share of a page.
        numa_node: the processor near its GPU; None where that makes no difference.
    """

    rank: int
    device: str
    memory: tuple[MemoryTerm, ...]
    attention: float = 1.0
    mlp: float = 1.0
    page_bytes: int = 0
    numa_node: int | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """How a model is served here. Every "auto" of the settings is resolved in it.

    Attributes:
        model: the name the user gave.
        architecture: transformers' class name.
        dtype: float32, bfloat16 or float16.
        weight_format: a name in quant's table.
        kv_format: K's and V's formats, as `quant.kv_format.parse_kv_formats` reads them.
        tensor_parallel, pipeline_stages: how many of each (one stage in this version).
        ranks: devices with their parts and expected memory.
        max_context: most positions of one sequence (prompt and answer).
        max_sequences: most sequences computed in one step.
        step_tokens: token budget of one step.
        page_tokens: positions a page of the first cache group holds.
        page_bytes: bytes of one page over all ranks, equal over groups.
        pages: pages in the pool.
        token_bytes: bytes that one position takes in the pool over all layers and ranks, scales included.
        host_pages: pages that the host tier holds; 0 where there is none.
        disk_bytes, cache_dir: budget and folder of the disk tier; 0 and empty where there is none.
        threads: processor threads for compute on a CPU device, all ranks' together.
        reasons: one sentence per decision, for people.
        experts: whether each rank has a slice of every expert ("tensor"), or whole ones ("expert").
        visible_gpus: what CUDA_VISIBLE_DEVICES has to name, by uuid, for the devices' numbers to hold; empty without.
        peer_writes: whether GPUs may write to each other's memory; where they may not, NCCL has to be told so.
    """

    model: str
    architecture: str
    dtype: str
    weight_format: str
    kv_format: str
    tensor_parallel: int
    pipeline_stages: int
    ranks: tuple[Rank, ...]
    max_context: int
    max_sequences: int
    step_tokens: int
    page_tokens: int
    page_bytes: int
    pages: int
    token_bytes: int
    host_pages: int
    disk_bytes: int
    cache_dir: str
    threads: int
    reasons: tuple[str, ...]
    experts: Literal["tensor", "expert"] = "tensor"
    visible_gpus: tuple[str, ...] = ()
    peer_writes: bool = True
