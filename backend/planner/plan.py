"""Plan: one deployment decision as a frozen value a person can read. Deciding it belongs to `decide`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from backend.layer_span import LayerSpan


class MemoryTerm(Struct, frozen=True):
    """One term of a rank's memory, in bytes: weights, kv, activations, libraries.

    Ranks of several also have communication, a processor's host cache, and where layers lie in host memory, streaming:
    the buffers that they are copied to.
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


class HostedLayers(Struct, frozen=True):
    """Layers whose weights lie in host memory, each rank's share, and are copied to its GPU ahead of their turn.

    Attributes:
        layers: their numbers; `among` is how many could lie there.
        host_bytes: what they take there, over all ranks.
        freed_bytes: what the GPUs hold less, the buffers taken off.
        step_bytes: what each step copies, over all ranks.
        rate: GB/s from host memory to one GPU, as assumed.
        seconds: what copying makes a step take at least.
    """

    layers: tuple[int, ...]
    among: int
    host_bytes: int
    freed_bytes: int
    step_bytes: int
    rate: float
    seconds: float


class Stage(Struct, frozen=True):
    """A range of layers on one machine.

    Attributes:
        peer: id of the machine; empty for the one that the engine runs on.
        name: of the machine, for people.
        span: the layers.
        ranks: how many of the Plan's ranks it has, which stand there stage after stage.
        threads, visible_gpus, peer_writes: as in Plan, of this machine.
    """

    peer: str
    name: str
    span: LayerSpan
    ranks: int
    threads: int = 1
    visible_gpus: tuple[str, ...] = ()
    peer_writes: bool = True


class Plan(Struct, frozen=True, kw_only=True):
    """How a model is served here. Every "auto" of the settings is resolved in it.

    Attributes:
        model: the name the user gave.
        architecture: transformers' class name.
        dtype: float32, bfloat16 or float16.
        weight_format: a name in quant's table.
        kv_format: K's and V's formats, as `quant.kv_format.parse_kv_formats` reads them.
        tensor_parallel: ranks that share each layer; of several stages, those of the first.
        pipeline_stages: how many ranges the layers are cut into.
        ranks: devices with their parts and expected memory, numbered through.
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
        hosted: the layers that lie in host memory; None where all weights lie on the devices.
        stages: of several, each one's layers and machine; empty where one stage on this machine has all layers.
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
    hosted: HostedLayers | None = None
    stages: tuple[Stage, ...] = ()
