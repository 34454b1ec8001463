"""Flow: runs a model once with random numbers in place of every product, and records what its modules make of them.

A linear layer answers with numbers of its own, whatever its input, so no weight is needed and every step between two
layers (norms, rotations, gates, views) is computed for real, with gradients. `owners` reads from these which rows of a
layer make which head or column; what follows from that is `cuts`' business.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from backend.surgery.choosers import idle
from backend.surgery.handed_on import hand_on
from backend.surgery.norm import rms_norm
from backend.surgery.rope import RopeLengths, replace_rope
from backend.surgery.tempered import tell_positions
from backend.surgery.trace import Traced, are_own_experts

FLOW = "shardwise-flow"
TOKENS = 3
# Parameters with more elements are one number, seen as many: only linear layers and experts have such, as a rule.
_MOST_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What an attention module handed over, [1, heads, T, D] each, and the numbers it was given, [1, T, heads * Dv]."""

    query: Tensor
    key: Tensor
    value: Tensor
    sinks: Tensor | None
    out: Tensor


@dataclass(slots=True)
class FlowRecord:
    """One run.

    Attributes:
        outputs: the numbers that each linear layer answered with, [1, T, out], by its path.
        inputs: what it was called with, [1, T, in]; layers that were called more often than their decoder layer
            are in neither.
        attention: by the module's path.
        parameters: those that are no linear layer's, by name, with gradients.
        opaque: numbers that stand for the residual stream, embeddings and experts.
        again: where decoder layers run several times, `inputs` and `attention` of the second run, the third, and so on.
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, AttentionCall] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    opaque: list[Tensor] = field(default_factory=list)
    again: list[FlowRecord] = field(default_factory=list)

    def note_attention(self, name: str, call: AttentionCall) -> None:
        self._of_run(name, lambda record: record.attention).attention[name] = call

    def note_linear(self, path: str, output: Tensor, given: Tensor) -> None:
        record = self._of_run(path, lambda record: record.inputs)
        record.outputs[path], record.inputs[path] = output, given

    def _of_run(self, name: str, notes: Callable[[FlowRecord], Mapping[str, Any]]) -> FlowRecord:
        """The record of the first run that has no note of that name."""
        for record in (self, *self.again):
            if name not in notes(record):
                return record
        self.again.append(FlowRecord())
        return self.again[-1]

    def forget_repeated(self, runs: Callable[[str], int]) -> None:
        """Drops linear layers that were called more often than `runs` says of their decoder layer."""
        records = (self, *self.again)
        calls = Counter(path for record in records for path in record.inputs)
        for path in [path for path, count in calls.items() if count not in (1, runs(path))]:
            for record in records:
                record.outputs.pop(path, None)
                record.inputs.pop(path, None)


class FlowModel:
    """A model prepared for such runs; it can be cut between two of them, and answers with the parts that are left.

    `kept` names, by linear layer or attention module, which rows of its numbers a cut has left.
    """

    def __init__(self, model: PreTrainedModel, traced: Traced) -> None:
        """model: from `build`, in float32, with parameters on meta; it is of no other use afterwards."""
        self.model, self.kept = model, dict[str, Tensor]()
        self._full: dict[str, int] = {}
        self._names = {model.get_submodule(layer.name): layer.name for layer in traced.layers}
        self._lengths = RopeLengths()
        idle(model, traced.choosers)
        self._record = FlowRecord()
        _register()
        _set_implementation(model)
        replace_rope(model, model.config, self._lengths)
        tell_positions(model, self._lengths)
        self._layers = {_layer_path(model, name) for name in self._names.values()}
        self._runs: Counter[str] = Counter()
        self._prepare(traced)
        hand_on(model, traced.unhanded, "recorder")

    def run(self) -> FlowRecord:
        """Raises what the model's own code raises where it cannot work on what it is given."""
        self._record = record = FlowRecord()
        self._runs.clear()
        positions = torch.arange(TOKENS)
        self._lengths.positions, self._lengths.lengths = positions, torch.full((TOKENS,), TOKENS)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                record.parameters[name] = parameter
        with torch.enable_grad():
            self.model(
                input_ids=torch.zeros(1, TOKENS, dtype=torch.long),
                position_ids=positions[None],
                use_cache=False,
                recorder=self,
            )
        record.forget_repeated(self._runs_around)
        return record

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        """The attention function of a run: notes its arguments, answers with numbers [1, T, heads, Dv]."""
        name, size = self._names[module], value.shape[-1]
        heads = self._full.setdefault(name, query.shape[1])
        numbers = _numbers(f"{name} out", 1, TOKENS, heads, size)
        out = self._leaf((numbers if name not in self.kept else numbers[:, :, self.kept[name]]).flatten(2))
        self._record.note_attention(name, AttentionCall(query, key, value, sinks, out))
        return out.unflatten(-1, (-1, size)).clone()

    def opaque(self, like: Tensor, name: str) -> Tensor:
        """Numbers in the shape of `like` whose use shows."""
        leaf = self._leaf(_numbers(name, *like.shape))
        self._record.opaque.append(leaf)
        return leaf.clone()

    def _prepare(self, traced: Traced) -> None:
        for path, module in list(self.model.named_modules()):
            if type(module) is nn.Linear:
                vars(module)["forward"] = partial(self._linear, path, module.out_features)
            elif isinstance(module, nn.Embedding):
                vars(module)["forward"] = partial(self._embedding, path, module.embedding_dim)
                # Some models take a row of the table themselves, for what is no text.
                module.weight = nn.Parameter(torch.zeros(()).expand(module.weight.shape), requires_grad=False)
            elif are_own_experts(module):  # whole on every rank
                vars(module)["forward"] = partial(self._own_experts, path)
            else:
                fill(path, module)
            if path in self._layers:
                module.register_forward_pre_hook(partial(self._cut_off, path), with_kwargs=True)
        for norm in wide_norms(self.model, traced):
            norm.forward = partial(_scale, norm)

    def _own_experts(self, path: str, hidden_states: Tensor, *choice: Tensor) -> Tensor:
        return self.opaque(hidden_states, path)

    def _linear(self, path: str, width: int, x: Tensor) -> Tensor:
        numbers = _numbers(path, *x.shape[:-1], width)
        leaf = self._leaf(numbers if path not in self.kept else numbers[..., self.kept[path]])
        self._record.note_linear(path, leaf, x)
        return leaf.clone()

    def _embedding(self, path: str, width: int, tokens: Tensor) -> Tensor:
        return self.opaque(torch.empty(*tokens.shape, width), path)

    def _cut_off(self, path: str, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """A layer sees its input as numbers of its own, so that gradients end there."""
        self._runs[path] += 1
        torch.set_grad_enabled(True)  # a model may want no gradients of a layer's earlier runs
        if arguments and isinstance(arguments[0], Tensor):
            return (self.opaque(arguments[0], path), *arguments[1:]), keywords
        if isinstance(keywords.get("hidden_states"), Tensor):
            return arguments, keywords | {"hidden_states": self.opaque(keywords["hidden_states"], path)}
        return arguments, keywords

    def _runs_around(self, path: str) -> int:
        """How often the decoder layer ran that holds the module."""
        return next((runs for layer, runs in self._runs.items() if path.startswith(f"{layer}.")), 1)

    @staticmethod
    def _leaf(numbers: Tensor) -> Tensor:
        return numbers.detach().clone().requires_grad_()


def wide_norms(model: nn.Module, traced: Traced) -> Iterator[Any]:
    """RMS norms inside attention modules and MLPs that go over all heads or columns, beside the linears that make them.

    A rank that holds some of these needs the others' squares; in a run they only scale.
    """
    sizes: dict[str, set[int]] = {}
    for layer in traced.layers:
        cache = layer.expanded
        sizes[layer.name] = {layer.heads * cache.key_size, cache.kv_heads * cache.key_size}
    for path, module in model.named_modules():
        linears = [child for child in module.children() if type(child) is nn.Linear]
        wanted = sizes.get(path, set()) | {linear.in_features for linear in linears}
        # A decoder layer's own norms have no linears beside them.
        for child in module.children():
            weight = child._parameters.get("weight")
            fits = weight is not None and weight.dim() == 1 and weight.shape[0] in wanted
            if linears and fits and rms_norm(child) is not None:
                yield child


def _scale(norm: nn.Module, x: Tensor) -> Tensor:
    weight: Any = norm._parameters["weight"]
    return x * weight


def _register() -> None:
    AttentionInterface.register(FLOW, _attend)
    ExpertsInterface.register(FLOW, _experts)


def _set_implementation(model: PreTrainedModel) -> None:
    seen: set[int] = set()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            config._attn_implementation, config._experts_implementation = FLOW, FLOW


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    recorder: FlowModel,
    **rest: Any,
) -> tuple[Tensor, None]:
    return recorder.attend(module, query, key, value, rest.get("s_aux")), None


def _experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    return _numbers("experts", *hidden_states.shape)


def fill(path: str, module: nn.Module) -> None:
    """Gives a module's own parameters numbers: positive ones, so that no activation hides what flows through it."""
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if parameter.numel() > _MOST_ELEMENTS:
            numbers = torch.full((1,), 0.01).expand(parameter.shape)
            module._parameters[name] = nn.Parameter(numbers, requires_grad=False)
        else:
            numbers = _numbers(f"{path}.{name}", *parameter.shape)
            module._parameters[name] = nn.Parameter(numbers, requires_grad=True)


def _numbers(name: str, *shape: int) -> Tensor:
    """Between 0.5 and 1.5, the same for a name every time."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand(shape, generator=generator) + 0.5


def _layer_path(model: nn.Module, name: str) -> str:
    """The decoder layer that holds the attention module: its outermost ancestor in a list of modules."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        path = ".".join(parts[:length])
        if length > 1 and isinstance(model.get_submodule(".".join(parts[: length - 1])), nn.ModuleList):
            return path
    return name
