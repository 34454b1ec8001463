"""VllmMemory: the answer: each stage's memory by term, the pool, and the verdict. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.fit.report import Verdict


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on each rank of one stage; ranks of tensor parallelism are alike.

    Attributes:
        weights, activations, non_torch: what profiling finds.
        graphs: CUDA graphs; `graphs_counted` says whether the pool makes room for them.
        context: of CUDA and communicators, outside of the budget.
        kv: the pool: the budget less the above; below 0 where nothing is left.
        unused: of the whole GPU, when all of this, other processes' and a step's activations are held.
    """

    stage: int
    weights: int
    activations: int
    non_torch: int
    graphs: int
    graphs_counted: bool
    context: int
    kv: int
    unused: int


@dataclass(frozen=True, slots=True)
class VllmMemory:
    """One deployment's memory.

    Attributes:
        stages: by stage.
        layers_billed: layers that the pool pays for, groups filled up.
        block_tokens, blocks: of the pool; the stage with the fewest decides.
        kv_tokens: what the log calls the size of the cache: of one group of tensor-parallel ranks and its stages.
        needed: bytes that one sequence of the longest length takes on the rank that decides.
        largest_context: the longest sequence that the pool holds, `max_model_len` at most.
        concurrency: sequences of `max_model_len` that it holds at once.
        verdict: of `fit.report`'s kinds.
    """

    stages: tuple[StageMemory, ...]
    layers_billed: int
    block_tokens: int
    blocks: int
    kv_tokens: int
    needed: int
    largest_context: int
    concurrency: float
    verdict: Verdict
