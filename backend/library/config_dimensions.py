"""Dimensions from the fields of a config.json: for what transformers cannot build, and for what no trace tells.

Public: dimensions_of(name, config) -> Dimensions; text_config(config).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import BrokenModelError
from backend.planner.fit.dimensions import (
    ATTENTION_ALONE,
    CHUNKED,
    DELTA,
    EXPERTS_ALONE,
    FULL,
    HEAVY,
    LIGHT,
    MAMBA_ALONE,
    MLP_ALONE,
    SLIDING,
    Compressed,
    DeltaNet,
    Dimensions,
    Experts,
    Heads,
    Indexer,
    Latent,
    Mamba,
)

Config = Mapping[str, Any]
# What families call the same thing.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "model_dim", "emb_dim"),
    "heads": (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads"),
        "num_decoder_attention_heads",
    ),
    "kv_heads": (
        "num_key_value_heads",
        "num_kv_heads",
        "n_head_kv",
        "n_kv_heads",
        "num_attention_groups",
        "kv_n_heads",
    ),
    "head_dim": ("head_dim", "attention_head_dim", "attention_head_size", "kv_channels", "d_kv"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim"),
    "vocab": ("vocab_size", "padded_vocab_size", "unpadded_vocab_size"),
    "max_position": (
        *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length"),
        "max_target_positions",
    ),
    "experts": ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_moe_experts"),
    "active": (
        *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k"),
        *("top_k_experts", "moe_k", "num_selected_experts"),
    ),
    "shared": (
        *("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim"),
        "shared_intermediate_size",
    ),
    "window": ("sliding_window", "sliding_window_size", "window_size", "attention_window_size"),
}
_TEXT_PARTS = (
    "text_config",
    "language_config",
    "llm_config",
    "thinker_config",
    "text_model",
    "decoder",
    "decoder_config",
    "global_config",
)
# Families whose attention rotates nothing.
_WITHOUT_ROPE = ("nemotron_h",)
_LAYER_LISTS = ("layer_types", "layers_block_type", "block_types", "_block_types")
_LETTERS: Mapping[str, str] = {
    **dict.fromkeys(("full_attention", "attention", "full", "hybrid", "global"), FULL),
    **dict.fromkeys(("sliding_attention", "sliding", "local", "local_attention", "swa"), SLIDING),
    "chunked_attention": CHUNKED,
    **dict.fromkeys(("linear_attention", "conv", "recurrent", "mamba", "mamba2", "kda", "lightning"), DELTA),
}


def text_config(config: Config) -> Config:
    """The part of a config that tells of the text model."""
    for name in _TEXT_PARTS:
        part = config.get(name)
        if isinstance(part, Mapping) and _first(part, "hidden") is not None:
            return {**{key: config[key] for key in ("tie_word_embeddings", "dtype", "torch_dtype") if key in config},
                    **text_config(part)}  # fmt: skip
    return config


def dimensions_of(name: str, config: Config) -> Dimensions:
    """The sizes that the config's fields tell. Raises BrokenModelError, naming the fields that are missing."""
    text = text_config(config)
    found = {key: _first(text, key) for key in ("layers", "hidden", "heads", "vocab")}
    lists = _layer_list(text)
    if found["layers"] is None and lists:
        found["layers"] = len(lists)
    if found["heads"] is None and _is_without_attention(text):
        found["heads"] = 1
    missing = [_NAMES[key][0] for key, value in found.items() if not value]
    if missing:
        raise BrokenModelError(
            f"The config of {name} does not tell how large the model is.",
            f"It has no {' and no '.join(missing)}.",
            "Give the model's own config.json, or name a repository that has one.",
        )
    layers, hidden, heads = int(found["layers"] or 0), int(found["hidden"] or 0), int(found["heads"] or 0)
    pattern = _pattern(text, layers)
    kv_heads = _first(text, "kv_heads") or (1 if text.get("multi_query") else None)
    head_dim = _first(text, "head_dim")
    return Dimensions(
        layers=layers,
        hidden=hidden,
        heads=heads,
        vocab=int(found["vocab"] or 0),
        max_position=_first(text, "max_position") or 2048,
        arch=_architecture(config),
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=_number(text.get("v_head_dim")),
        intermediate=_first(text, "intermediate") or 4 * hidden,
        tie_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
        native_dtype=dtype_of(config),
        sliding_window=_window(text, pattern),
        layer_pattern=pattern,
        full=_full_heads(text, head_dim),
        sliding=_sliding_heads(text),
        moe=_experts(text, layers),
        mla=_latent(text),
        compressed=_compressed(text),
        sinks="all" if text.get("compress_ratios") else "",
        delta=_delta(text, hidden, heads),
        mamba=_mamba(text, hidden),
        qkv_bias=bool(text.get("attention_bias") or text.get("qkv_bias") or text.get("use_qkv_bias")),
        gated_mlp=not str(text.get("mlp_hidden_act", "")).startswith("relu2"),
        output_gate=bool(text.get("attn_output_gate")),
        rope_tables=_rope_tables(text, head_dim or hidden // heads),
        rotary_share=0.0 if text.get("model_type") in _WITHOUT_ROPE else 1.0,
    )


def dtype_of(config: Config) -> str:
    """The dtype that the config names; bfloat16 where it names none that is served."""
    text = text_config(config)
    for place in (config, text):
        named = str(place.get("dtype") or place.get("torch_dtype") or "").removeprefix("torch.")
        if named in ("bfloat16", "float16", "float32"):
            return named
    return "bfloat16"


def _rope_tables(text: Config, head_dim: int) -> tuple[tuple[int, int], ...]:
    """Positions and rotated elements of each table that vLLM keeps (vllm/model_executor/layers/rotary_embedding).

    A linear stretch makes it longer, YaRN starts from the original length, and positions in three dimensions get four
    times as many.
    """
    if text.get("model_type") in _WITHOUT_ROPE:
        return ()
    positions, told = (
        _first(text, "max_position") or 2048,
        text.get("rope_parameters") or text.get("rope_scaling") or {},
    )
    kinds = [one for one in told.values() if isinstance(one, Mapping)] or [told]
    latent = _number(text.get("qk_rope_head_dim"))
    tables: set[tuple[int, int]] = set()
    for kind in kinds:
        share = kind.get("partial_rotary_factor") or text.get("partial_rotary_factor") or text.get("rotary_pct") or 1
        name, factor = kind.get("rope_type") or kind.get("type"), kind.get("factor") or 1
        length = positions
        if name == "linear":
            length = int(positions * factor)
        elif name == "yarn" and kind.get("original_max_position_embeddings"):
            length = int(kind["original_max_position_embeddings"] * factor)
        elif name == "longrope" and text.get("original_max_position_embeddings"):
            length = positions + int(text["original_max_position_embeddings"])
        if "mrope_section" in kind:
            length *= 4
        tables.add((length, latent or round(head_dim * share)))
    return tuple(sorted(tables))


def _first(config: Config, key: str) -> int | None:
    """The first of the names that the config has a number for; of a list with one a layer, the largest."""
    for name in _NAMES[key]:
        value = config.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            value = max((one for one in value if isinstance(one, int)), default=None)
        found = _number(value)
        if found is not None:
            return found
    return None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _architecture(config: Config) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, Sequence) and not isinstance(named, str) and named else ""


def _layer_list(text: Config) -> list[str]:
    for name in _LAYER_LISTS:
        value = text.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            return [str(one) for one in value]
    return []


def _is_without_attention(text: Config) -> bool:
    return any(name in text for name in ("state_size", "ssm_state_size", "attention_hidden_size", "lru_width"))


def _pattern(text: Config, layers: int) -> str:
    """A letter a layer, of those that `dimensions` has."""
    ratios = text.get("compress_ratios")
    if isinstance(ratios, Sequence) and len(ratios) >= layers:
        return "".join(SLIDING if not one else LIGHT if one < _HEAVY_RATIO else HEAVY for one in ratios[:layers])
    override = text.get("hybrid_override_pattern")
    known = {MAMBA_ALONE, EXPERTS_ALONE, ATTENTION_ALONE, MLP_ALONE}
    if isinstance(override, str) and override and set(override) <= known:
        return override
    listed = _layer_list(text)
    if listed and set(listed) <= {"mamba", "attention", "moe", "mlp"} and set(listed) & {"moe", "mlp"}:
        letters = {"mamba": MAMBA_ALONE, "attention": ATTENTION_ALONE, "moe": EXPERTS_ALONE, "mlp": MLP_ALONE}
        return "".join(letters[one] for one in listed)
    if listed:
        return "".join(_LETTERS.get(one, FULL) for one in listed)[:layers]
    flags = text.get("hybrid_layer_pattern")
    if isinstance(flags, Sequence) and len(flags) == layers:
        return "".join(SLIDING if one else FULL for one in flags)
    linear = text.get("linear_attn_config")
    if isinstance(linear, Mapping) and isinstance(linear.get("full_attn_layers"), Sequence):
        full = set(linear["full_attn_layers"])
        return "".join(FULL if index + 1 in full else DELTA for index in range(layers))
    indices = text.get("attn_layer_indices")
    if isinstance(indices, Sequence):
        return "".join(FULL if index in set(indices) else DELTA for index in range(layers))
    period = _number(text.get("attn_layer_period"))
    if period is not None:
        offset = text.get("attn_layer_offset", 0)
        return "".join(FULL if index % period == offset else DELTA for index in range(layers))
    every = _number(text.get("full_attention_interval"))
    if every is not None:
        return DELTA * (every - 1) + FULL
    every = _number(text.get("sliding_window_pattern")) or _number(text.get("global_attn_every_n_layers"))
    if every is not None and every > 1 and _first(text, "window"):
        return SLIDING * (every - 1) + FULL
    if _is_without_attention(text) and _first(text, "heads") is None:
        return DELTA
    return SLIDING if _window(text, "") else FULL


_HEAVY_RATIO = 32


def _compressed(text: Config) -> Compressed | None:
    """DeepSeek-V4's attention."""
    ratios = [one for one in text.get("compress_ratios") or () if one]
    if not ratios:
        return None
    return Compressed(
        q_lora_rank=_number(text.get("q_lora_rank")) or 0,
        output_groups=_number(text.get("o_groups")) or 1,
        output_rank=_number(text.get("o_lora_rank")) or 0,
        light=min(ratios),
        heavy=max(ratios),
        streams=_number(text.get("hc_mult")) or 1,
        indexer=Indexer(_number(text.get("index_n_heads")) or 0, _number(text.get("index_head_dim")) or 0),
    )


def _window(text: Config, pattern: str) -> int | None:
    """Positions of a sliding layer; None where the config has a number and turns it off."""
    if set(pattern) & {LIGHT, HEAVY}:
        return _first(text, "window") or 128
    if CHUNKED in pattern:
        return _number(text.get("attention_chunk_size"))
    if pattern and SLIDING not in pattern:
        return None
    if text.get("use_sliding_window") is False:
        return None
    return _first(text, "window")


def _full_heads(text: Config, head_dim: int | None) -> Heads | None:
    """Gemma 4's: layers that see all positions have fewer and wider heads."""
    wide, few = _number(text.get("global_head_dim")), _number(text.get("num_global_key_value_heads"))
    if wide is None or (wide == head_dim and few is None):
        return None
    return Heads(kv_heads=few, head_dim=wide, key_is_value=bool(text.get("attention_k_eq_v")))


def _sliding_heads(text: Config) -> Heads | None:
    kv_heads = _number(text.get("swa_num_key_value_heads"))
    if kv_heads is None:
        return None
    return Heads(
        heads=_number(text.get("swa_num_attention_heads")),
        kv_heads=kv_heads,
        head_dim=_number(text.get("swa_head_dim")),
        value_dim=_number(text.get("swa_v_head_dim")),
    )


def _experts(text: Config, layers: int) -> Experts | None:
    count, active = _first(text, "experts"), _first(text, "active")
    if count is None or count < 2 or text.get("enable_moe_block") is False:
        return None
    width = _number(text.get("moe_intermediate_size")) or _number(text.get("expert_ffn_hidden_size"))
    width = width or _first(text, "intermediate") or 0
    shared = _number(text.get("n_shared_experts")) or _number(text.get("num_shared_experts")) or 0
    frequency = text.get("moe_layer_freq")
    dense = _number(text.get("first_k_dense_replace")) or 0
    if isinstance(frequency, Sequence) and len(frequency) == layers and 1 in frequency:
        dense = list(frequency).index(1)
    return Experts(
        experts=count,
        active=active or 1,
        moe_intermediate=width,
        shared_intermediate_total=_first(text, "shared") or shared * width,
        dense_layers=dense,
        interleave_step=_number(text.get("interleave_moe_layer_step")) or 1,
        beside_dense=bool(text.get("enable_moe_block")),
    )


def _latent(text: Config) -> Latent | None:
    rank, rope = _number(text.get("kv_lora_rank")), _number(text.get("qk_rope_head_dim"))
    nope, value = _number(text.get("qk_nope_head_dim")), _number(text.get("v_head_dim"))
    if rank is None or nope is None or value is None:
        return None
    heads, size = _number(text.get("index_n_heads")), _number(text.get("index_head_dim"))
    chosen = _number(text.get("index_topk")) or 0
    indexer = Indexer(heads, size, chosen=chosen) if heads and size else None
    return Latent(rank, nope, rope or 0, value, _number(text.get("q_lora_rank")), indexer)


def _delta(text: Config, hidden: int, heads: int) -> DeltaNet:
    """A state of keys by values; of layers that only convolve or gate, the state is what the convolution sees."""
    linear = text.get("linear_attn_config")
    if isinstance(linear, Mapping):
        count, size = int(linear.get("num_heads", heads)), int(linear.get("head_dim", 128))
        return DeltaNet(count, count, size, size, int(linear.get("short_conv_kernel_size", 4)))
    values = _number(text.get("linear_num_value_heads")) or _number(text.get("linear_num_heads"))
    if values is not None:
        size = _number(text.get("linear_head_dim")) or 128
        key = _number(text.get("linear_key_head_dim")) or size
        value = _number(text.get("linear_value_head_dim")) or size
        keys = _number(text.get("linear_num_key_heads")) or values
        return DeltaNet(keys, values, key, value, _number(text.get("linear_conv_kernel_dim")) or 4)
    kernel = _number(text.get("conv_L_cache")) or _number(text.get("conv_kernel")) or 4
    states = _named(text, *_STATES) or 0
    inner = _inner(text, hidden)
    # One head whose keys are the states.
    return DeltaNet(0, 1, states, inner, kernel)


_STATES = ("mamba_d_state", "ssm_state_size", "state_size", "mamba_state_dim", "d_state")


def _named(text: Config, *names: str) -> int | None:
    """The first of these fields that is a number."""
    return next((found for name in names if (found := _number(text.get(name)))), None)


def _inner(text: Config, hidden: int) -> int:
    """Channels of a layer that keeps a state."""
    heads = _named(text, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
    size = _named(text, "mamba_d_head", "mamba_head_dim", "mamba_headdim")
    inner = _named(text, "mamba_d_ssm", "lru_width", "mamba_intermediate_size")
    if inner is None and heads is not None and size is not None:
        return heads * size
    return inner or hidden * (_named(text, "mamba_expand", "expand") or 1)


def _mamba(text: Config, hidden: int) -> Mamba | None:
    heads = _number(text.get("mamba_num_heads"))
    if heads is None:
        return None
    return Mamba(
        heads=heads,
        head_dim=_number(text.get("mamba_head_dim")) or 64,
        state=_named(text, *_STATES) or 128,
        groups=_number(text.get("n_groups")) or _number(text.get("mamba_n_groups")) or 1,
        kernel=_number(text.get("conv_kernel")) or _number(text.get("mamba_d_conv")) or 4,
    )
