"""Tables of small sizes that do not divide nicely, by the names that configs give them, and what single types ask for.

`shrink` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

WINDOW = 8
EXPERTS = 5
LAYERS = 4

# Applied to every config that has the name with a number for a value.
SMALL: Mapping[str, int] = MappingProxyType(
    {
        "vocab_size": 131,
        "vocab_size_per_layer_input": 131,
        "unpadded_vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 72,
        "intermediate_size_mlp": 100,
        "dense_intermediate_size": 100,
        "prefix_dense_intermediate_size": 100,
        "ffn_hidden_size": 72,
        "moe_intermediate_size": 40,
        "expert_ffn_hidden_size": 40,
        "shared_intermediate_size": 36,
        "shared_expert_intermediate_size": 36,
        "shared_experts_intermediate_size": 36,
        "moe_shared_expert_intermediate_size": 36,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "swa_num_attention_heads": 6,
        "swa_num_key_value_heads": 3,
        "head_dim": 16,
        "swa_head_dim": 16,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 256,
        "sliding_window": WINDOW,
        "sliding_window_size": WINDOW,
        "attention_chunk_size": WINDOW,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "n_routed_experts": EXPERTS,
        "moe_num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_experts_per_token": 2,
        "moe_topk": 2,
        "moe_k": 2,
        "top_k_experts": 2,
        "n_group": 1,
        "num_expert_group": 1,
        "n_groups": 1,
        "topk_group": 1,
        "num_shared_experts": 1,
        "n_shared_experts": 1,
        "moe_num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "num_dense_layers": 1,
        "sliding_window_pattern": 2,
        "global_attn_every_n_layers": 2,
        "no_rope_layer_interval": 2,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "qk_head_dim": 24,
        "v_head_dim": 12,
        "query_pre_attn_scalar": 16,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "num_kv_shared_layers": 0,
        "zero_expert_num": 2,
        "num_nextn_predict_layers": 0,
        "max_window_layers": 2,
        "global_head_dim": 32,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "index_topk": 64,
        "gated_norm_rank": 4,
        "mamba_n_heads": 6,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_heads": 6,
        "linear_head_dim": 8,
        "ple_embed_dim": 64,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 4,
        "dim_model_base": 16,
        "moe_layer_end_index": LAYERS - 1,
        "rel_extent": 16,
        "image_size": 28,
        "patch_size": 14,
        "num_layers": 2,
    }
)

# For attention that compresses K and V to a latent: heads that do not divide, each with a key of its own.
LATENT: Mapping[str, int] = MappingProxyType({"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 5})

# Biases make row-parallel products show whether they are added once.
SWITCHES: Mapping[str, bool] = MappingProxyType({"attention_bias": True, "mlp_bias": True})

_MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_HEADS = {"head_dim": 16}
_NINE = {"num_attention_heads": 9, **_HEADS}  # three query heads to a KV head
_WINDOWS = {"use_sliding_window": True, "layer_types": _MIXED}
_GEMMA4 = {"global_head_dim": 32}
_GEMMA4_MIXTURE = {
    **_GEMMA4,
    "enable_moe_block": True,
    "num_experts": EXPERTS,
    "top_k_experts": 2,
    "moe_intermediate_size": 40,
}
_GROUPED = {"n_routed_experts": 6, "n_group": 2, "topk_group": 1}
_INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}

# What single types ask for beside that. A sub-config has its own type.
BY_TYPE: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cohere": {"use_qk_norm": True},
        "cohere_compass_text": {
            "num_key_value_heads": 3,
            "layer_types": _MIXED,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
            },
        },
        "cwm": {"bos_token_id": 1},
        "deepseek_v2": _GROUPED | {"topk_method": "group_limited_greedy", "num_experts_per_tok": 2},
        "deepseek_v3": _GROUPED,
        "dots1": _HEADS | {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2},
        "dots3_note_audio_encoder": {"adapter_input_size": 48, "adapter_out_dim": 60},
        "dots3_note_vision_encoder": {"adapter_in_dim": 48, "adapter_out_dim": 60, "mlp_bias": False},
        "ernie4_5_moe": {"moe_k": 3},
        "flint": {"mlp_only_layers": [0]},
        "gemma": {"num_key_value_heads": 2},  # fewer than ranks
        "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": _MIXED},
        "gemma4_text": _GEMMA4_MIXTURE,
        "gemma4_unified_text": _GEMMA4,
        "helium": {"head_dim": 8},
        "hunyuan_v1_moe": _HEADS,
        "laguna": {"num_attention_heads_per_layer": [6, 9, 3, 12], "layer_types": _MIXED},
        "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
        "llama": _NINE | {"hidden_size": 72},
        "mellum": {"layer_types": _MIXED},
        "ministral": _HEADS | {"layer_types": _MIXED},
        "mistral": _NINE,
        "nemotron": {"num_key_value_heads": 3, "head_dim": 8},
        "qwen2": _WINDOWS,
        "qwen2_moe": _WINDOWS,
        "qwen3": _NINE | _WINDOWS,
        "qwen3_moe": _NINE,
        "qwen4_exp_text": _INDEXED,
        "starcoder2": {"num_key_value_heads": 1},
    }
)
