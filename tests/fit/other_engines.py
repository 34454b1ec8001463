"""What SGLang, TensorRT-LLM and llama.cpp hold, as far as their own accounting tells. vLLM's is `planner.vllm`."""

from __future__ import annotations

from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.packings import packed_bytes
from backend.planner.vllm.deployment import VllmDeployment
from backend.planner.vllm.kv_groups import KvGroups, kv_groups
from backend.planner.vllm.weights import stage_weights
from kvcache.layout import Keeps

GIB = 1 << 30
# SGLang takes its fraction of what is free before the weights (model_runner.py, profile_max_num_token): a GPU less
# its context, and NCCL's buffers where ranks talk.
_SGLANG_CONTEXT, _SGLANG_RANKS = 0.5, 2.2
# --mem-fraction-static where nobody sets it, and TensorRT-LLM's part of the memory that is free after its engine.
SGLANG_FRACTION, TENSORRT_FRACTION = 0.88, 0.9
# An engine's activations and context beside the weights.
_TENSORRT_REST = 2.0
# Bits of an element in llama.cpp's cache: blocks of 32 with a 16-bit scale (q8_0: 8.5).
_GGML_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}


def sglang_pool(model: KnownModel, deployment: VllmDeployment) -> int:
    """Bytes of the pool: fraction x free before loading - weights."""
    context = _SGLANG_CONTEXT if deployment.tp == 1 else _SGLANG_RANKS
    before = deployment.memory - int(context * GIB)
    return int(before * deployment.utilization) - stage_weights(model, deployment)[0]


def tensorrt_pool(model: KnownModel, deployment: VllmDeployment) -> int:
    free = deployment.memory - stage_weights(model, deployment)[0] - int(_TENSORRT_REST * GIB)
    return int(free * deployment.utilization)


def pool_tokens(model: KnownModel, deployment: VllmDeployment, pool: int) -> int:
    """Positions that a pool holds where each has its own place in every layer."""
    groups: KvGroups = kv_groups(model, deployment)
    row = sum(kind.token_bytes * kind.layers for kind in groups.kinds if not kind.state)
    return max(0, pool) // row if row else 0


def llama_weights(model: KnownModel, packing: str) -> int:
    """Bytes of a GGUF file's tensors."""
    return packed_bytes(model.facts, packing)


def llama_kv(model: KnownModel, context: int, kv_dtype: str) -> int:
    """Bytes of the cache that llama.cpp allocates for `context` positions, over all its devices."""
    bits = next((bits for name, bits in _GGML_BITS.items() if kv_dtype.startswith(name)), 16)
    elements = sum(
        layer.key_size if layer.keeps is Keeps.LATENT else layer.kv_heads * (layer.key_size + layer.value_size)
        for layer in model.facts.layers
    )
    return int(elements * context * bits / 8)
