"""Accounts for vLLM's memory: the terms put together as its worker does. Each term's formula is its module's.

Public: account(model, deployment) -> VllmMemory.

    KV = utilization x total - (weights + peak of activations + what is not torch's [+ graphs, from 0.21 on])

(`determine_available_memory`, vllm/v1/worker/gpu_worker.py; 86 logs hold to it with a mean error of 0.011 GiB.)
"""

from __future__ import annotations

from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.activations import stage_activations
from backend.planner.vllm.deployment import VllmDeployment
from backend.planner.vllm.judge import Pool, judge
from backend.planner.vllm.kv_groups import KvGroups, kv_groups
from backend.planner.vllm.overheads import context_bytes, graph_bytes, graphs_in_budget, non_torch_bytes
from backend.planner.vllm.vllm_memory import StageMemory, VllmMemory
from backend.planner.vllm.weights import stage_weights


def account(model: KnownModel, deployment: VllmDeployment) -> VllmMemory:
    """Memory of every stage's ranks, the pool, and whether it fits.

    Sizes are bytes of one GPU. Raises SettingError for a packing that nobody knows.
    """
    weights = stage_weights(model, deployment)
    activations = stage_activations(model, deployment)
    stages = tuple(
        _stage(model, deployment, stage, *terms) for stage, terms in enumerate(zip(weights, activations, strict=True))
    )
    groups = kv_groups(model, deployment)
    return _with_pool(stages, groups, deployment)


def _stage(model: KnownModel, deployment: VllmDeployment, stage: int, weights: int, activations: int) -> StageMemory:
    beside, graphs, context = (
        non_torch_bytes(deployment),
        graph_bytes(model, deployment),
        context_bytes(model, deployment),
    )
    counted = graphs_in_budget(deployment)
    kv = deployment.budget - weights - activations - beside - (graphs if counted else 0)
    spent = context + weights + activations + beside + graphs + max(0, kv) + deployment.held
    return StageMemory(
        stage=stage,
        weights=weights,
        activations=activations,
        non_torch=beside,
        graphs=graphs,
        graphs_counted=counted,
        context=context,
        kv=kv,
        unused=deployment.memory - spent,
    )


def _with_pool(stages: tuple[StageMemory, ...], groups: KvGroups, deployment: VllmDeployment) -> VllmMemory:
    """The stage whose pool has the fewest blocks decides for all: a block is a block on every stage."""
    steps, longest = deployment.max_num_batched_tokens, deployment.max_model_len
    counts = [groups.blocks(stage.kv, stage.stage) for stage in stages]
    tightest = min(range(len(stages)), key=lambda stage: counts[stage])
    blocks = counts[tightest]
    each = max(1, groups.blocks_of(longest, steps))
    needed = each * groups.block_bytes * groups.stage_layers[tightest]
    largest, concurrency = groups.largest(blocks, longest, steps), blocks / each
    return VllmMemory(
        stages=stages,
        layers_billed=groups.layers_billed,
        block_tokens=groups.block_tokens,
        blocks=blocks,
        kv_tokens=_logged_tokens(groups, blocks, concurrency, deployment),
        needed=needed,
        largest_context=largest,
        concurrency=concurrency,
        verdict=judge(stages, Pool(tightest, needed, largest, concurrency), deployment),
    )


def _logged_tokens(groups: KvGroups, blocks: int, concurrency: float, deployment: VllmDeployment) -> int:
    """What the log calls the size of the cache: from 0.20 on, what sequences of the longest length have together."""
    return int(concurrency * deployment.max_model_len) if deployment.version >= (0, 20) else groups.tokens(blocks)
