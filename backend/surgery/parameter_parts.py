"""Which parameters of a model are divided by what: heads, columns, experts or the vocabulary; in numbers, for plans.

They are told by shapes: attention's linear layers by how many rows heads take, MLPs as layers with as many columns
between them. Where each tensor is really cut is decided elsewhere, from what flows through the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.planner.model_facts import Columns, ExpertColumns
from backend.surgery.batched_experts import batched_experts
from backend.surgery.trace import TracedLayer


@dataclass(slots=True)
class ParameterParts:
    """Counts as ModelFacts has them; `seen` are the parameters that were counted, by id."""

    query_parameters: list[int] = field(default_factory=list)
    key_parameters: list[int] = field(default_factory=list)
    columns: Counter[int] = field(default_factory=Counter)
    experts: Counter[tuple[int, int]] = field(default_factory=Counter)
    vocabulary: int = 0
    output: int = 0
    seen: set[int] = field(default_factory=set)

    def facts(self) -> dict[str, Any]:
        """The fields of ModelFacts."""
        return {
            "query_parameters": tuple(self.query_parameters),
            "key_parameters": tuple(self.key_parameters),
            "columns": tuple(Columns(width, count) for width, count in self.columns.items()),
            "experts": tuple(ExpertColumns(*shape, count) for shape, count in self.experts.items()),
            "vocabulary_parameters": self.vocabulary,
            "output_parameters": self.output,
        }

    def count(self, parameters: Iterable[Tensor | None]) -> int:
        """Elements of those that were not counted before: tied ones count once."""
        total = 0
        for parameter in parameters:
            if parameter is not None and id(parameter) not in self.seen:
                self.seen.add(id(parameter))
                total += parameter.numel()
        return total


def parameter_parts(model: PreTrainedModel, layers: Sequence[TracedLayer]) -> ParameterParts:
    """layers: as they are served. A parameter that nothing here knows belongs to every rank."""
    config: Any = model.config.get_text_config()
    hidden, parts = config.hidden_size, ParameterParts()
    for end in (model.get_output_embeddings(), model.get_input_embeddings()):
        weight = getattr(end, "weight", None)
        if isinstance(weight, nn.Parameter):
            parts.vocabulary += parts.count([weight, getattr(end, "bias", None)])
            parts.output = parts.output or parts.vocabulary
    for layer in layers:
        _count_attention(parts, model.get_submodule(layer.name), layer, hidden)
    attention = {id(module) for layer in layers for module in model.get_submodule(layer.name).modules()}
    for module in model.modules():
        if id(module) not in attention:
            _count_experts(parts, module, hidden)
            _count_columns(parts, module, hidden)
    return parts


def _count_attention(parts: ParameterParts, attention: nn.Module, layer: TracedLayer, hidden: int) -> None:
    """Rows that queries are made of, and columns that take what was attended; rows of keys and values."""
    heads, (kv_heads, key, value) = layer.heads, _sizes(layer)
    query_rows, key_rows = heads * key, kv_heads * (key + value)
    made_of_queries = {heads * key, heads * value, 2 * heads * key}  # a gate may come with each query
    queries = keys = 0
    for linear in _linears(attention.modules()):
        rows, depth = linear.out_features, linear.in_features
        if rows == query_rows + key_rows:
            count = parts.count([linear.weight, linear.bias])
            queries += count * query_rows // rows
            keys += count - count * query_rows // rows
        elif depth == heads * value and rows == hidden:
            queries += parts.count([linear.weight])  # its bias is added once, after adding up
        elif rows in made_of_queries or (depth != hidden and rows % heads == 0):
            queries += parts.count([linear.weight, linear.bias])
        elif rows in (kv_heads * key, kv_heads * value, key_rows):
            keys += parts.count([linear.weight, linear.bias])
    parts.query_parameters.append(queries)
    parts.key_parameters.append(keys)


def _sizes(layer: TracedLayer) -> tuple[int, int, int]:
    """KV heads, and elements of a head's key and value, as the module makes them; latents are made for all heads."""
    form = layer.latent
    if form is None:
        return layer.cache.kv_heads, layer.cache.key_size, layer.cache.value_size
    return layer.heads, form.nope + form.rope, form.value


def _count_columns(parts: ParameterParts, module: nn.Module, hidden: int) -> None:
    """An MLP: layers beside each other that take the hidden state, and one that takes as many columns as they make."""
    linears = list(_linears(module.children()))
    for down in linears:
        width = down.in_features
        ups = [up for up in linears if up is not down and up.in_features == hidden and up.out_features % width == 0]
        ups = [up for up in ups if up.out_features in (width, 2 * width)]
        if down.out_features == hidden and ups:
            parts.columns[width] += parts.count([down.weight, *(part for up in ups for part in (up.weight, up.bias))])


def _count_experts(parts: ParameterParts, module: Any, hidden: int) -> None:
    """Experts that lie in one tensor: [experts, hidden, width] or [experts, width, hidden]."""
    down = module._parameters.get("down_proj")
    if down is not None and down.dim() == 3:
        count, *sides = down.shape
        width = sides[0] if sides[1] == hidden else sides[1]
        if batched_experts(module):  # divided by columns, whatever is asked
            parts.columns[width] += parts.count(module.parameters(recurse=False))
            return
        parts.experts[count, width] += parts.count(module.parameters(recurse=False))


def _linears(modules: Iterable[nn.Module]) -> Iterator[nn.Linear]:
    return (module for module in modules if isinstance(module, nn.Linear))
