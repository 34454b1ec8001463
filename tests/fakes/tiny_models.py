"""Tiny random checkpoints of many families, made from transformers' configs and saved as safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from backend.library.files import ModelFiles

WINDOW = 8
_PLAIN: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_SPREAD = 0.9


def _family(name: str, **changes: Any) -> Callable[[], PreTrainedConfig]:
    return lambda: getattr(transformers, f"{name}Config")(**(_PLAIN | changes))


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **parameters}


_MIXTURE: dict[str, Any] = {"num_experts_per_tok": 2}
_HEADS: dict[str, Any] = {"head_dim": 16}
_WIDE: dict[str, Any] = {"head_dim": 32}  # heads wide enough for the fused stack of layers
_KINDS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
} | _MIXTURE
_LATENT_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=0.5)
_LONG = _rope(
    "longrope",
    short_factor=[1.0 + 0.05 * i for i in range(8)],
    long_factor=[1.5 + 0.5 * i for i in range(8)],
    original_max_position_embeddings=24,
)

# As many positions are chosen as the longest sequence of any test has.
_CHOOSER: dict[str, Any] = {"index_topk": 96, "index_head_dim": 16, "index_n_heads": 2}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _family("Llama"),
    "llama-wide": _family("Llama", **_WIDE),
    "qwen3-wide": _family("Qwen3", **_WIDE),
    "mistral-wide": _family("Mistral", sliding_window=WINDOW, **_WIDE),
    "llama-tied": _family("Llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-dynamic": _family("Llama", max_position_embeddings=32, rope_parameters=_rope("dynamic", factor=8.0)),
    "llama-linear": _family("Llama", rope_parameters=_rope("linear", factor=3.0)),
    "llama-yarn": _family("Llama", rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama-llama3": _family(
        "Llama",
        rope_parameters=_rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "qwen2": _family("Qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _family("Qwen3", **_HEADS),
    "mistral": _family("Mistral", sliding_window=WINDOW),
    "gemma2": _family(
        "Gemma2",
        **_HEADS,
        sliding_window=WINDOW,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=12.0,
        query_pre_attn_scalar=16,
    ),
    "phi3-longrope": _family("Phi3", rope_parameters=_LONG, original_max_position_embeddings=24),
    "gpt-oss": _family(
        "GptOss",
        **_HEADS,
        **_MIXTURE,
        **_KINDS,
        sliding_window=WINDOW,
        num_local_experts=4,
        rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
    ),
    "qwen3-moe": _family("Qwen3Moe", **_HEADS, **_MIXTURE, num_experts=4, moe_intermediate_size=32),
    "mixtral": _family("Mixtral", **_MIXTURE, num_local_experts=4),
    "gemma3": _family("Gemma3Text", **_HEADS, **_KINDS, sliding_window=WINDOW, query_pre_attn_scalar=16),
    "olmo2": _family("Olmo2"),
    "cohere2": _family("Cohere2", **_KINDS, sliding_window=WINDOW, logit_scale=0.5),
    "granite": _family("Granite", attention_multiplier=0.2, residual_multiplier=0.8, logits_scaling=2.0),
    "starcoder2": _family("Starcoder2", sliding_window=WINDOW),
    "glm4-moe": _family(
        "Glm4Moe",
        **_HEADS,
        **_MIXTURE,
        n_routed_experts=4,
        n_shared_experts=1,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
    ),
    "llama4": _family(
        "Llama4Text",
        **_HEADS,
        **_MIXTURE,
        intermediate_size_mlp=96,
        num_local_experts=4,
        attention_chunk_size=WINDOW,
        no_rope_layers=[1, 0, 1],
        layer_types=["chunked_attention", "full_attention", "chunked_attention"],
        moe_layers=[1],
        floor_scale=4,
        attn_scale=0.5,
    ),
    "deepseek-v3": _family("DeepseekV3", **_LATENT, rope_parameters=_LATENT_YARN),
    "deepseek-v2": _family("DeepseekV2", **_LATENT, attention_bias=True),
    "deepseek-v2-lite": _family("DeepseekV2", **_LATENT | {"q_lora_rank": None}),
    "glm4-moe-lite": _family("Glm4MoeLite", **_LATENT),
    "minicpm3": _family("MiniCPM3", **_LATENT),
    "deepseek-v32": _family("DeepseekV32", **_LATENT | _CHOOSER),
    "glm-moe-dsa": _family("GlmMoeDsa", **_LATENT | _CHOOSER, indexer_types=["full", "shared", "full"]),
    "axk2": _family("AXK2", **_LATENT | _CHOOSER, gated_norm_rank=4),
    "hy-v4": _family("HYV4", **_LATENT | _CHOOSER, hc_mult=2),
    "dots3-note": _family(
        "Dots3NoteText",
        **_LATENT | _CHOOSER,
        **{f"swa_{name}": _LATENT[name] for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")},
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        swa_head_dim=24,
        sliding_window=WINDOW,
    ),
    "hrm-text": _family("HrmText", **_HEADS | {"num_hidden_layers": 2}, H_cycles=2, L_cycles=2, embedding_scale=2.0),
}


def make_checkpoint(family: str, folder: Path) -> ModelFiles:
    """Writes a random model of the family to the folder, the same one each time."""
    config = FAMILIES[family]()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomize(model, torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    weights = tuple(str(path) for path in sorted(folder.glob("*.safetensors")))
    size = sum(Path(path).stat().st_size for path in weights)
    return ModelFiles(name=family, format="safetensors", weights=weights, folder=str(folder), bytes=size)


def reference_model(files: ModelFiles) -> PreTrainedModel:
    """transformers' own model of the checkpoint: float32, eager attention."""
    return AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def _randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Values that keep activations near 1, with attention outputs strong enough to decide the answer."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            fan = parameter.shape[-1] if "embed" not in name else 1
            gain = 3.0 if "o_proj" in name else _SPREAD
            parameter.copy_(noise * gain / fan**0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.add_(noise * 0.1)
        else:
            parameter.copy_(noise * 0.2)
