"""Dimensions from a GGUF file's header: for files whose config cannot be derived, or that lie on the hub.

Public: gguf_dimensions(name, header) -> Dimensions.
"""

from __future__ import annotations

from backend.errors import BrokenModelError
from backend.library.gguf_header import GgufHeader
from backend.planner.fit.dimensions import CHUNKED, FULL, SLIDING, Dimensions, Experts, Latent

# Kinds whose layers alternate between windows and all positions, as llama.cpp has it in code rather than in the file.
_PATTERNS = {"gemma2": "SF", "gemma3": "SSSSSF", "gpt-oss": "SF", "cohere2": "SSSF", "llama4": "CCCF"}


def gguf_dimensions(name: str, header: GgufHeader) -> Dimensions:
    """The sizes that the header tells. Raises BrokenModelError, naming the fields that are missing."""
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    kind = header.architecture
    layers, hidden = _value(header, "block_count"), _value(header, "embedding_length")
    heads = _value(header, "attention.head_count")
    table = shapes.get("token_embd.weight")
    wanted = {"block_count": layers, "embedding_length": hidden, "attention.head_count": heads}
    missing = [f"{kind}.{field}" for field, value in wanted.items() if not value]
    missing += [] if table else ["token_embd.weight"]
    if missing or not layers or not hidden or not heads or not table:
        raise BrokenModelError(
            f"The header of {name} does not tell how large the model is.", f"It has no {' and no '.join(missing)}."
        )
    key = _value(header, "attention.key_length") or hidden // heads
    keys = shapes.get("blk.0.attn_k.weight")
    window = _value(header, "attention.sliding_window") or _value(header, "attention.chunk_size")
    pattern = _PATTERNS.get(kind, FULL if kind.startswith("qwen") or not window else SLIDING)
    return Dimensions(
        layers=layers,
        hidden=hidden,
        heads=heads,
        vocab=table[0],
        max_position=_value(header, "context_length") or 2048,
        arch=kind,
        kv_heads=_value(header, "attention.head_count_kv") or (keys[0] // key if keys else None),
        head_dim=key,
        value_dim=_value(header, "attention.value_length"),
        intermediate=_value(header, "feed_forward_length"),
        tie_embeddings="output.weight" not in shapes,
        sliding_window=window if set(pattern) & {SLIDING, CHUNKED} else None,
        layer_pattern=pattern,
        moe=_experts(header),
        mla=_latent(header),
        qkv_bias="blk.0.attn_q.bias" in shapes,
        qk_norm="head" if "blk.0.attn_q_norm.weight" in shapes else "",
        norms=4 if "blk.0.post_ffw_norm.weight" in shapes else 2,
    )


def _value(header: GgufHeader, field: str) -> int | None:
    value = header.values.get(f"{header.architecture}.{field}")
    return value if isinstance(value, int) and value > 0 else None


def _experts(header: GgufHeader) -> Experts | None:
    count = _value(header, "expert_count")
    if count is None:
        return None
    width = _value(header, "expert_feed_forward_length") or _value(header, "feed_forward_length") or 0
    shared = _value(header, "expert_shared_feed_forward_length") or width * (_value(header, "expert_shared_count") or 0)
    return Experts(
        experts=count,
        active=_value(header, "expert_used_count") or 1,
        moe_intermediate=width,
        shared_intermediate_total=shared,
        dense_layers=_value(header, "leading_dense_block_count") or 0,
        interleave_step=_value(header, "interleave_moe_layer_step") or 1,
    )


def _latent(header: GgufHeader) -> Latent | None:
    rank, rope = _value(header, "attention.kv_lora_rank"), _value(header, "rope.dimension_count") or 0
    key = _value(header, "attention.key_length_mla") or _value(header, "attention.key_length")
    value = _value(header, "attention.value_length_mla") or _value(header, "attention.value_length")
    if rank is None or key is None or value is None:
        return None
    return Latent(rank, key - rope, rope, value, _value(header, "attention.q_lora_rank"))
