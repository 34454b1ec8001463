"""ModelFacts of a transformers config, found by building the model on meta and tracing it. Weights are not read."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from backend.planner.model_facts import ModelFacts, positions_reason
from backend.surgery.build import build_for_trace
from backend.surgery.decoder_layers import decoder_layers, layer_parameters
from backend.surgery.latent import EXPANSION
from backend.surgery.latent_probe import LatentProbe
from backend.surgery.one_thread import one_thread
from backend.surgery.parameter_parts import parameter_parts
from backend.surgery.refusal import unsupported
from backend.surgery.rope import RopeLengths, replace_rope
from backend.surgery.store import linear_shapes
from backend.surgery.trace import Traced, trace
from quant.weight_sizes import LinearShape

# Layers with a recurrent or convolutional state keep it outside K and V; none of these words names an attention module.
_STATE_ATTRIBUTES = ("conv1d", "A_log", "dt_bias", "ssm_state_size", "rg_lru")
# Models whose difference from plain attention a trace without data cannot see.
_REFUSED = MappingProxyType(
    {
        "deepseek_v4": "its layers attend to compressed keys beside those of the window",
        "minimax_m3_vl_text": "its layers choose the keys they attend to",
        "mllama": "it is made for images, which are not served yet",
    }
)


def describe(config: PreTrainedConfig) -> ModelFacts:
    """What deciding a Plan needs to know of the model.

    Raises:
        UnsupportedModelError: a model that this version does not serve, with the reason.
    """
    return trace_model(config)[0]


def trace_model(config: PreTrainedConfig) -> tuple[ModelFacts, Traced]:
    """The model's facts, and what tracing it found."""
    if getattr(config, "is_encoder_decoder", False):
        raise unsupported(config, "it is an encoder-decoder")
    if config.model_type in _REFUSED:
        raise unsupported(config, _REFUSED[config.model_type])
    model = build_for_trace(config)
    model.tie_weights()
    _refuse_state(config, model)
    lengths = RopeLengths()
    replace_rope(model, config, lengths)
    traced = trace(model, lengths)
    with one_thread():
        probe = LatentProbe()
        layers = tuple(probe.as_latents(layer, model.get_submodule(layer.name)) for layer in traced.layers)
    traced = replace(traced, layers=layers)
    text: Any = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or 2048
    facts = ModelFacts(
        architecture=type(model).__name__,
        layers=tuple(layer.cache for layer in traced.layers),
        heads=tuple(layer.heads for layer in traced.layers),
        hidden=text.hidden_size,
        intermediate=_intermediate(text),
        vocabulary=text.vocab_size,
        max_positions=min(most, traced.chosen or most),
        positions_reason=positions_reason(traced.chosen, most),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        native_dtype=str(config.dtype or "float32").removeprefix("torch."),
        active_experts=_active_experts(text),
        **parameter_parts(model, traced.layers).facts(),
        linears=_linears(model, traced),
        layer_parameters=layer_parameters(model, decoder_layers(model, [layer.name for layer in traced.layers])),
    )
    return facts, traced


def own_facts(facts: ModelFacts, traced: Traced) -> ModelFacts:
    """The facts of one rank's part, which has heads of its own; sizes of the whole model stay."""
    layers = tuple(layer.cache for layer in traced.layers)
    return replace(facts, layers=layers, heads=tuple(layer.heads for layer in traced.layers))


def _linears(model: PreTrainedModel, traced: Traced) -> tuple[tuple[LinearShape, int], ...]:
    """Linears by their shapes; those that expand latents are no linears after surgery."""
    expansions = frozenset(f"{layer.name}.{EXPANSION}" for layer in traced.layers if layer.latent is not None)
    return tuple(linear_shapes(model, expansions))


def _refuse_state(config: PreTrainedConfig, model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        if any(hasattr(module, attribute) for attribute in _STATE_ATTRIBUTES):
            raise unsupported(config, f"{name} keeps a recurrent state, for which the cache has no group yet")


def _intermediate(text: Any) -> int:
    """The widest MLP: experts' width times active experts where there are experts."""
    dense = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    dense = max(dense) if isinstance(dense, list | tuple) else dense
    width = getattr(text, "moe_intermediate_size", None)
    active = _active_experts(text) or 1
    if width is None:
        return dense * active
    return max(dense, width * active)


def _active_experts(text: Any) -> int:
    """Experts that a token passes in a layer, as the families name it; 0 where there are none."""
    names = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")
    found = (getattr(text, name, None) for name in names)
    return max((one for one in found if isinstance(one, int)), default=0)
