"""Facts of a model that `describe` refuses, without tracing it: its parameters by tensor, from the model on meta.

What its layers keep is taken from the config's fields, and from which layers have a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from backend.planner.fit.compose import known_model_of
from backend.planner.fit.dimensions import DELTA, MAMBA_ALONE, Dimensions
from backend.planner.fit.known_model import KnownModel, StateLayers
from backend.planner.model_facts import Columns, ExpertColumns
from backend.surgery.parameter_parts import ParameterParts, parameter_parts
from backend.surgery.refusal import unsupported
from quant.weight_sizes import LinearShape

# What modules that keep a state have (`describe` refuses them), and words in the paths of those that attend.
_STATEFUL = ("conv1d", "conv", "A_log", "dt_bias", "ssm_state_size", "rg_lru", "time_decay", "slstm", "mlstm")
_ATTENDING = ("attn", "attention", "mixer", "temporal_block")
# Classes that transformers may have for a config: text alone first, or all of it first.
TEXT_FIRST = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModel)
WHOLE_FIRST = (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM, AutoModel)


def build_whole(config: PreTrainedConfig, kinds: Sequence[Any] = TEXT_FIRST) -> PreTrainedModel:
    """The model on meta by the first kind of class that transformers has for the config.

    Raises UnsupportedModelError where it has none, or cannot build it.
    """
    for kind in kinds:
        if type(config) in kind._model_mapping:
            try:
                with torch.device("meta"), no_init_weights():
                    model = kind.from_config(config)
                    model.tie_weights()
                return model
            except Exception as error:
                # Constructors of hundreds of families: whatever they raise, they have not built a model.
                raise unsupported(config, f"transformers cannot build it from its config here ({error})") from error
    raise unsupported(config, "transformers has no model class for it")


def count(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(one.numel() for one in module.parameters())


def outlined(size: Dimensions, model: PreTrainedModel, outside: int) -> KnownModel:
    """The model by its dimensions, with every count that the model on meta gives put in its place.

    outside: parameters of it that are not the text model's.
    """
    layers = _decoder_layers(model, size.layers)
    states = [layer for layer in layers if _has_state(layer)]
    known = known_model_of("", _with_kinds(size, layers) if states else size)
    parts = _parts(model, size.hidden)
    facts = replace(
        known.facts,
        architecture=type(model).__name__,
        parameters=count(model) - outside,
        columns=tuple(Columns(*part) for part in parts.columns.items()),
        experts=tuple(ExpertColumns(*shape, number) for shape, number in parts.experts.items()),
        vocabulary_parameters=parts.vocabulary or known.facts.vocabulary_parameters,
        output_parameters=parts.output or known.facts.output_parameters,
        layer_parameters=tuple(count(layer) for layer in layers) or known.facts.layer_parameters,
        linears=_linears(model),
    )
    if facts.replicated_parameters < 0:
        # The formulas for heads do not hold for this family; then what is not known is whole on every rank.
        none = (0,) * len(facts.layers)
        facts = replace(facts, query_parameters=none, key_parameters=none)
    return replace(known, facts=facts, states=_states(size, known, states), exact=True)


def _decoder_layers(model: nn.Module, wanted: int) -> list[nn.Module]:
    """The text model's list of layers: that of the right length with most parameters; empty where there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == wanted]
    return list(max(lists, key=count)) if lists else []


def _with_kinds(size: Dimensions, layers: Sequence[nn.Module]) -> Dimensions:
    """With layers that keep a state and attend to nothing told apart, where the config does not tell them."""
    if set(size.kinds) & {DELTA, MAMBA_ALONE}:
        return size
    letters = [
        DELTA if _has_state(layer) and not _has_attention(layer) else kind
        for layer, kind in zip(layers, size.kinds, strict=True)
    ]
    return msgspec.structs.replace(size, layer_pattern="".join(letters))


def _has_state(layer: nn.Module) -> bool:
    return any(hasattr(module, name) for module in layer.modules() for name in _STATEFUL)


def _has_attention(layer: nn.Module) -> bool:
    return any(
        ("attn" in name or "attention" in name)
        and not _has_state(module)
        and next(module.parameters(), None) is not None
        for path, module in layer.named_modules()
        for name in [path.rpartition(".")[2].lower()]
        if "norm" not in name
    )


def _states(size: Dimensions, known: KnownModel, layers: Sequence[nn.Module]) -> tuple[StateLayers, ...]:
    """How many layers keep a state there are, and their parameters, in the model; its bytes by dimensions."""
    if not layers:
        return known.states
    alone = known.states or known_model_of("", msgspec.structs.replace(size, layer_pattern=DELTA)).states
    return (StateLayers(len(layers), alone[0].bytes if alone else 0, sum(map(_state_parameters, layers))),)


def _state_parameters(layer: nn.Module) -> int:
    for module in layer.modules():
        if any(hasattr(module, name) for name in _STATEFUL):
            return count(module)
    return 0


def _parts(model: PreTrainedModel, hidden: int) -> ParameterParts:
    """Columns, experts and the vocabulary, as `parameter_parts` counts them outside of attention."""
    attending = [name for name, _ in model.named_modules() if _attends(name)]
    kept = [(name, module) for name, module in model.named_modules() if not _below(name, attending)]
    shown: Any = _Shown(model, [module for _, module in kept], hidden)
    return parameter_parts(shown, ())


class _Shown:
    """The model with some of its modules only, for `parameter_parts`."""

    def __init__(self, model: PreTrainedModel, modules: Sequence[nn.Module], hidden: int) -> None:
        self._model, self._modules, self.hidden_size, self.config = model, modules, hidden, self

    def get_text_config(self) -> _Shown:
        return self

    def modules(self) -> Iterator[nn.Module]:
        return iter(self._modules)

    def get_output_embeddings(self) -> nn.Module | None:
        return self._model.get_output_embeddings()

    def get_input_embeddings(self) -> nn.Module | None:
        try:
            return self._model.get_input_embeddings()
        except NotImplementedError:
            return None


def _attends(path: str) -> bool:
    last = path.rpartition(".")[2].lower()
    return any(word in last for word in _ATTENDING)


def _below(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)


def _linears(model: PreTrainedModel) -> tuple[tuple[LinearShape, int], ...]:
    """Shapes of linear layers, and of experts that lie in one tensor."""
    counts: dict[LinearShape, int] = {}
    output = model.get_output_embeddings()
    for path, module in model.named_modules():
        shapes: list[tuple[LinearShape, int]] = []
        if type(module) is nn.Linear:
            kept = module is output or module.out_features < 16 or path.endswith((".gate", ".router"))
            shape = LinearShape(module.out_features, module.in_features, module.bias is not None, kept)
            shapes.append((shape, 1))
        for name in ("gate_up_proj", "up_proj", "down_proj"):
            stack = module._parameters.get(name)
            if stack is not None and stack.dim() == 3:
                shapes.append((LinearShape(stack.shape[1], stack.shape[2], expert=True), stack.shape[0]))
        for shape, number in shapes:
            counts[shape] = counts.get(shape, 0) + number
    return tuple(counts.items())
