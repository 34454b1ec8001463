"""Shrinks a config class to a tiny model that keeps each kind of layer. Tables are in `sizes`."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.conformance.architectures.sizes import BY_TYPE, LATENT, LAYERS, SMALL, SWITCHES

_WITHOUT_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def types() -> dict[str, type[PreTrainedConfig]]:
    """Every causal language model type with a plan for tensor parallelism, of its own or of its text part."""
    classes = AutoModelForCausalLM._model_mapping.keys()
    return {config.model_type: config for config in classes if _has_plan(config, "base_model_tp_plan")}


def divides_experts(config: type[PreTrainedConfig]) -> bool:
    """Whether the type has a plan for whole experts on different ranks."""
    return _has_plan(config, "base_model_ep_plan")


def _has_plan(config: type[PreTrainedConfig], name: str) -> bool:
    text = _parts(config).get("text_config")
    return bool(getattr(config, name, None) or (text is not None and getattr(text, name, None)))


def _parts(config: type[PreTrainedConfig]) -> dict[str, Any]:
    parts: Any = config.sub_configs
    return dict(parts)


def shrink(config: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A small config of the class."""
    return config(**_changes(config))


def _changes(config: type[PreTrainedConfig]) -> dict[str, Any]:
    """Arguments for the constructor of a small config."""
    whole = config()
    changes: dict[str, Any] = {}
    for name, value in vars(whole).items():
        if name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            changes[name] = SMALL[name]
        elif name in SWITCHES:
            changes[name] = SWITCHES[name]
    if "kv_lora_rank" in changes:
        changes |= LATENT
    if "head_dim" in changes and "kv_lora_rank" in changes:
        changes["head_dim"] = changes["qk_rope_head_dim"]
    own = dict(BY_TYPE.get(config.model_type, {}))
    parts = {name: _changes(type(getattr(whole, name))) for name in _parts(config) if getattr(whole, name, None)}
    return changes | (_WITHOUT_TOKENS if "vocab_size" in changes else {}) | _layers(whole) | parts | own


def _layers(whole: Any) -> dict[str, Any]:
    """The lists with an item a layer, cut to a few layers among which each kind of layer is."""
    total = getattr(whole, "num_hidden_layers", None)
    lists = {name: value for name, value in vars(whole).items() if isinstance(value, list) and len(value) == total}
    if not lists:
        return {}
    kinds = [tuple(map(str, kind)) for kind in zip(*lists.values(), strict=True)]
    chosen = [layer for layer, kind in enumerate(kinds) if kind not in kinds[:layer]][:LAYERS]
    rest = [layer for layer in range(len(kinds)) if layer not in chosen]
    chosen = sorted(chosen + rest[: LAYERS - len(chosen)])
    return {name: [items[layer] for layer in chosen] for name, items in lists.items()}
