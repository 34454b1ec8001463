"""Trace: runs a model once without data and notes what each attention layer asks for: sizes, order and mask.

The masks come from transformers' own mask functions, which are asked which positions they let through, so a model whose
attention we do not reproduce shows itself here; nothing is believed because of a model's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from backend.surgery.chooser_probe import Call, chosen_positions
from backend.surgery.choosers import EveryKey, Idle, choosers, idle
from backend.surgery.handed_on import hand_on
from backend.surgery.latent import LatentForm
from backend.surgery.mask import Mask, MaskFunction, OddMaskError, Sight, sight
from backend.surgery.refusal import unsupported
from backend.surgery.rope import RopeLengths
from kvcache.layout import Keeps, LayerCache

TRACE = "shardwise-trace"
_TRACE_TOKENS = 2
_PLAIN_ARGUMENTS = {"dropout", "scaling", "sliding_window", "softcap", "s_aux", "position_ids", "is_causal"}


@dataclass(frozen=True, slots=True)
class TracedLayer:
    """One attention call: the module that made it, what its cache keeps, and its query heads.

    `latent` says how, where it is served from latents.
    """

    name: str
    cache: LayerCache
    heads: int
    latent: LatentForm | None = None

    @property
    def expanded(self) -> LayerCache:
        """What its module hands to attention: for latents, the keys and values of every head."""
        form = self.latent
        if form is None:
            return self.cache
        return LayerCache(Keeps.FULL, None, self.heads, form.nope + form.rope, form.value)


@dataclass(frozen=True, slots=True)
class Traced:
    """What a trace found.

    Attributes:
        layers: attention calls in the order of their slots; a module that runs several times has one for each run.
        shared_inputs: names of linear layers that were called with one and the same tensor, in order of calls.
        rotary_sizes: for the modules that were called with the keyword `position_embeddings`, two tables, and at
            most one argument without keyword: the columns of the tables.
        unhanded: attention modules whose layers do not pass the model's further arguments on to them.
        choosers: modules that choose attention's keys; they need not run up to `chosen` positions, None without any.
    """

    layers: tuple[TracedLayer, ...]
    shared_inputs: tuple[tuple[str, ...], ...]
    rotary_sizes: Mapping[str, int]
    unhanded: tuple[str, ...] = ()
    choosers: tuple[str, ...] = ()
    chosen: int | None = None

    @property
    def modules(self) -> tuple[TracedLayer, ...]:
        """Each attention module once, in the order of first calls; all calls of one are alike."""
        return tuple({layer.name: layer for layer in self.layers}.values())

    @property
    def repeated(self) -> frozenset[str]:
        """The modules that run several times in a pass."""
        runs = Counter(layer.name for layer in self.layers)
        return frozenset(name for name, count in runs.items() if count > 1)


@dataclass(slots=True)
class _Recorder:
    """What the trace's attention function writes down; handed through the model as the argument `recorder`."""

    calls: list[tuple[nn.Module, Tensor, Tensor, Tensor, Any, dict[str, Any]]] = field(default_factory=list)
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    rotary_sizes: dict[str, int] = field(default_factory=dict)
    unhanded: dict[str, None] = field(default_factory=dict)
    called_with: dict[str, Call] = field(default_factory=dict)

    def watch(self, model: nn.Module) -> None:
        """Notes from now on which tensor each linear layer is called with."""
        takers = [name for name, module in model.named_modules() if _takes_any_keyword(module)]
        hand_on(model, takers, "recorder", lambda name: self.unhanded.update({name: None}))
        for name, module in model.named_modules():
            if are_own_experts(module):
                vars(module)["forward"] = _like_first
            elif type(module) is nn.Linear:
                module.register_forward_pre_hook(partial(self._note, name))
            elif hasattr(module, "layer_idx") or isinstance(module, Idle):
                module.register_forward_pre_hook(partial(self._note_call, name), with_kwargs=True)

    def _note(self, name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments:
            self.inputs.append((name, arguments[0]))

    def _note_call(self, name: str, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.called_with[name] = arguments, keywords
        tables = keywords.get("position_embeddings")
        if len(arguments) <= 1 and isinstance(tables, tuple) and len(tables) == 2:
            self.rotary_sizes[name] = tables[0].shape[-1]

    def shared_inputs(self) -> tuple[tuple[str, ...], ...]:
        called = Counter(name for name, _ in self.inputs)
        groups: dict[int, list[str]] = {}
        for name, tensor in self.inputs:  # the tensors are kept, so their ids stay theirs
            if called[name] == 1:
                groups.setdefault(id(tensor), []).append(name)
        return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def register() -> None:
    """Makes TRACE known to transformers as an attention and as a mask implementation."""
    AttentionInterface.register(TRACE, _record)
    AttentionMaskInterface.register(TRACE, _mask)


def _mask(*, mask_function: MaskFunction, **unused: Any) -> Any:
    return Mask(mask_function)


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    recorder: _Recorder | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    if recorder is None:
        raise TypeError("its layers do not pass further arguments on to their attention")
    recorder.calls.append((module, query, key, value, attention_mask, rest))
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def trace(model: PreTrainedModel, lengths: RopeLengths) -> Traced:
    """Runs a model whose tensors are all on meta; its attention layers are numbered in the order of their calls.

    Modules that choose keys are gone from the model afterwards.

    Raises:
        UnsupportedModelError: attention that we would not reproduce; the reason names what is odd.
    """
    chosen_by, recorder = choosers(model), _Recorder()
    idle(model, tuple(chosen_by))
    recorder.watch(model)
    tokens = torch.zeros(1, _TRACE_TOKENS, dtype=torch.long, device="meta")
    arguments = {"attention_mask": torch.ones_like(tokens), "use_cache": False, "recorder": recorder}
    lengths.lengths = tokens[0]
    config = model.config
    try:
        with torch.device("meta"), torch.no_grad(), _unchecked_distributions():
            model(input_ids=tokens, position_ids=tokens, **arguments)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise unsupported(config, f"its forward pass needs more than tokens and positions ({error})") from error
    names = {module: name for name, module in model.named_modules()}
    known: dict[Mask, Sight] = {}
    layers = tuple(_layer(config, names[call[0]], call, known) for call in recorder.calls)
    if not layers:
        raise unsupported(config, "no layer of it computes attention through transformers' attention interface")
    if len({layer.name for layer in layers}) != len(set(layers)):
        raise unsupported(config, "one of its attention modules does something else each time it runs in a pass")
    unhanded = tuple(name for name in recorder.unhanded if name in {layer.name for layer in layers})
    told = {names[call[0]]: call[0] for call in recorder.calls if any(map(_is_choice, call[-1].values()))}
    positions = chosen_positions(config, told, chosen_by, recorder.called_with) if told or chosen_by else None
    rotary_sizes = MappingProxyType(recorder.rotary_sizes)
    return Traced(layers, recorder.shared_inputs(), rotary_sizes, unhanded, tuple(chosen_by), positions)


def _is_choice(given: object) -> bool:
    return isinstance(given, EveryKey)


def are_own_experts(module: nn.Module) -> bool:
    """Experts that a model runs by a loop over those that have tokens, which nobody knows without data."""
    return list(signature(module.forward).parameters) == ["hidden_states", "top_k_index", "top_k_weights"]


def _like_first(hidden_states: Tensor, *unused: Tensor) -> Tensor:
    return torch.empty_like(hidden_states)


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """torch's distributions, which some MLPs ask for a constant, look at their arguments' values, and meta has none."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _takes_any_keyword(module: nn.Module) -> bool:
    """Whether it may be an attention module that hands on what it does not know."""
    kinds = [parameter.kind for parameter in signature(module.forward).parameters.values()]
    return hasattr(module, "layer_idx") and Parameter.VAR_KEYWORD in kinds


def _layer(config: PreTrainedConfig, name: str, call: tuple[Any, ...], known: dict[Mask, Sight]) -> TracedLayer:
    """known: masks that were asked already; layers share them."""
    module, query, key, value, mask, rest = call
    odd = sorted(
        key for key, given in rest.items() if given is not None and key not in _PLAIN_ARGUMENTS and _matters(given)
    )
    if odd:
        raise unsupported(config, f"{name} hands its attention {', '.join(odd)}, which we do not know")
    if not getattr(module, "is_causal", True) or rest.get("is_causal") is False:
        raise unsupported(config, f"{name} attends in both directions")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] or key.shape[1] != value.shape[1]:
        raise unsupported(config, f"{name} has {query.shape[1]} query heads over {key.shape[1]} key heads")
    if key.shape[2] != _TRACE_TOKENS or query.shape[2] != _TRACE_TOKENS:
        raise unsupported(config, f"{name} attends to something else than the tokens of its sequence")
    seen = _sight(config, name, mask, known)
    cache = LayerCache(seen.keeps, seen.window, key.shape[1], key.shape[-1], value.shape[-1])
    return TracedLayer(name, cache, query.shape[1])


def _matters(given: object) -> bool:
    """Whether an extra argument could change attention: tensors and numbers may, flags that are off do not."""
    return not (given is None or given is False or _is_choice(given) or (isinstance(given, tuple | dict) and not given))


def _sight(config: PreTrainedConfig, name: str, mask: Any, known: dict[Mask, Sight]) -> Sight:
    """What the layer's tokens see, by the model's own mask."""
    if not isinstance(mask, Mask):
        raise unsupported(config, f"{name} does not take its mask from transformers' mask functions")
    named = ("max_position_embeddings", "sliding_window", "attention_chunk_size")
    longest = 2 * max(2048, *(getattr(config, setting, None) or 0 for setting in named))
    try:
        if mask not in known:
            known[mask] = sight(mask, longest)
        return known[mask]
    except OddMaskError as error:
        raise unsupported(config, f"the mask of {name} {error}") from error
