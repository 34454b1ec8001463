"""What vLLM holds beside torch's tensors: NCCL and kernels, CUDA graphs, and the context. From its logs. Pure.

Each constant belongs to a version and a kind of GPU; `fit.md` has the figures that they come from.
"""

from __future__ import annotations

from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.deployment import VllmDeployment
from backend.planner.vllm.stages import layer_count

_GIB = 1 << 30

# Context of one GPU, and of one that talks to others (init_non_torch in logs of 0.19).
_CONTEXT, _CONTEXT_RANKS, _CONTEXT_EXPERTS = 0.51, 1.5, 2.0
# Kernels' own memory that a forward takes: from 0.17 on 0.24 to 0.27 GiB on H100, 0.13 before, and 0.03 to 0.08 in
# V0 of 0.7 and later.
_KERNELS_NEW, _KERNELS_V1, _KERNELS_V0 = 0.25, 0.13, 0.06
# Before 0.7 what profiling called non-torch had the CUDA context in it (0.26 to 0.39 GiB).
_KERNELS_WITH_CONTEXT = 0.33
# With stages, what a rank needs was taken before profiling starts.
_KERNELS_STAGES = 0.07
# NCCL's buffers of two ranks and more. On GPUs whose switch adds up itself (compute capability 9.0 on, NVLink), 0.17
# and later: 2.06 GiB with two ranks, 2.13 to 2.21 with four. Before, buffers for each pair of ranks: 0.42 with two
# (H100, 0.16), 7.2 with eight (H200, 0.7), and a quarter of that on NVLink 3 (A100: 0.43 with four, 2.1 with eight).
_SWITCH, _SWITCH_EACH = 1.8, 0.03
_PAIRS_SWITCH, _PAIRS_NVLINK = 0.42, 0.11
# Over PCIe: 0.2 on RTX 4090 and 3090.
_RANKS = 0.2

# CUDA graphs of 51 batch sizes: 0.38 GiB of a pool, 17 MiB for each layer, and 4 for each expert that a token passes
# in it (V1 0.19 on H100; 0.51 GiB for 8 dense layers to 1.85 for 80).
_GRAPH_POOL, _GRAPH_LAYER, _GRAPH_EXPERT = 0.38, 0.0165, 0.004
_GRAPH_SIZES = 51


def non_torch_bytes(deployment: VllmDeployment) -> int:
    """Bytes that profiling finds beside torch's, of one rank."""
    return int(_non_torch(deployment) * _GIB)


def _non_torch(deployment: VllmDeployment) -> float:
    version, many = deployment.version, deployment.tp > 1
    if version >= (0, 17) and deployment.pp > 1 and not many:
        return _KERNELS_STAGES
    if version >= (0, 17):
        kernels = _KERNELS_NEW if _switched(deployment) else _KERNELS_V1
    elif deployment.v1:
        kernels = _KERNELS_V1
    else:
        kernels = _KERNELS_V0 if version >= (0, 7) else _KERNELS_WITH_CONTEXT
    return kernels + (_communication(deployment) if many else 0)


def _communication(deployment: VllmDeployment) -> float:
    pairs = (deployment.tp / 2) ** 2
    if _switched(deployment):
        newer = deployment.version >= (0, 17)
        return _SWITCH + _SWITCH_EACH * (deployment.tp - 2) if newer else _PAIRS_SWITCH * pairs
    linked = any(name in deployment.gpu.lower() for name in ("a100-sxm", "v100-sxm"))
    return max(_RANKS, _PAIRS_NVLINK * pairs) if linked else _RANKS


def _switched(deployment: VllmDeployment) -> bool:
    """Whether it is a GPU for servers whose NVLink switch adds up: by its kind, as machines that have one are built."""
    name = deployment.gpu.lower()
    large = deployment.capability is not None and deployment.capability >= (9, 0)
    return large and not any(word in name for word in ("pcie", "rtx", "geforce", "gb10"))


def context_bytes(model: KnownModel, deployment: VllmDeployment) -> int:
    """Bytes of the CUDA context and the communicators' first buffers, outside of vLLM's budget."""
    if deployment.tp * deployment.pp * deployment.dp == 1:
        return int(_CONTEXT * _GIB)
    return int((_CONTEXT_EXPERTS if model.facts.experts else _CONTEXT_RANKS) * _GIB)


def graph_bytes(model: KnownModel, deployment: VllmDeployment) -> int:
    """Bytes of CUDA graphs, captured after profiling, of one rank of one stage."""
    if deployment.enforce_eager:
        return 0
    layers = layer_count(model) / deployment.pp
    each = _GRAPH_LAYER + _GRAPH_EXPERT * model.facts.active_experts
    return int((_GRAPH_POOL + each * layers) * _sizes(deployment) / _GRAPH_SIZES * _GIB)


def _sizes(deployment: VllmDeployment) -> int:
    """Batch sizes that are captured: 1, 2, 4, then every 8th to 256 and every 16th to 512 (config/compilation.py)."""
    most = min(2 * deployment.max_num_seqs, 512) if deployment.v1 else min(deployment.max_num_seqs, 256)
    return 3 + min(most, 256) // 8 + max(0, most - 256) // 16


def graphs_in_budget(deployment: VllmDeployment) -> bool:
    """Whether the pool makes room for graphs: from 0.21 on (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS)."""
    return deployment.version >= (0, 21)
