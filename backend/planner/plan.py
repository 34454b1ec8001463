"""Plan: one deployment decision as a frozen value a person can read. Deciding it belongs to `decide`."""

from __future__ import annotations

from msgspec import Struct


class MemoryTerm(Struct, frozen=True):
    """One term of a device's memory, in bytes: weights, kv, activations, libraries; a processor also has host cache."""

    name: str
    bytes: int


class Rank(Struct, frozen=True):
    """One rank's device and expected memory, by term."""

    rank: int
    device: str
    memory: tuple[MemoryTerm, ...]


class Plan(Struct, frozen=True, kw_only=True):
    """How a model is served here. Every "auto" of the settings is resolved in it.

    Attributes:
        model: the name the user gave.
        architecture: transformers' class name.
        dtype: float32, bfloat16 or float16.
        weight_format: a name in quant's table.
        kv_format: K's and V's formats, as `quant.kv_format.parse_kv_formats` reads them.
        tensor_parallel, pipeline_stages: how many of each (1 in this version).
        ranks: devices with their expected memory.
        max_context: most positions of one sequence (prompt and answer).
        max_sequences: most sequences computed in one step.
        step_tokens: token budget of one step.
        page_tokens: positions a page of the first cache group holds.
        page_bytes: bytes of one page, equal over groups.
        pages: pages in the pool.
        token_bytes: bytes that one position takes in the pool over all layers, scales included.
        host_pages: pages that the host tier holds; 0 where there is none.
        disk_bytes, cache_dir: budget and folder of the disk tier; 0 and empty where there is none.
        threads: processor threads for compute on a CPU device.
        reasons: one sentence per decision, for people.
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
