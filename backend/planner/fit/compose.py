"""From Dimensions to a KnownModel: parameters by what divides them, shapes of linears, what each layer keeps.

Public: known_model_of(name, dimensions, ...) -> KnownModel. The sums are those of transformers' models of these sizes,
which tests hold them to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from backend.planner.fit.dimensions import ALONE, EXPERTS_ALONE, MLP_ALONE, Dimensions, Experts
from backend.planner.fit.known_model import KnownModel, StateLayers, StoredWeights
from backend.planner.fit.layer_sum import LayerSum
from backend.planner.fit.mixers import add_mixer
from backend.planner.model_facts import Columns, ExpertColumns, ModelFacts
from quant.weight_sizes import LinearShape

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def known_model_of(
    name: str, dimensions: Dimensions, *, source: str = "its dimensions", stored: StoredWeights | None = None
) -> KnownModel:
    """The model, by formulas. `stored` None takes what `dimensions.quant` says."""
    layers = [_layer(dimensions, index, kind) for index, kind in enumerate(dimensions.kinds)]
    return KnownModel(
        name=name,
        facts=_facts(dimensions, layers),
        stored=stored or StoredWeights(packing=dimensions.quant or "model"),
        source=source,
        states=_states(dimensions, layers),
        other_parameters=dimensions.other_parameters,
        chosen=_chosen(dimensions),
        chooser_parameters=sum(layer.choosers for layer in layers),
        rope_elements=rope_elements(dimensions),
    )


def _chosen(model: Dimensions) -> int | None:
    chooser = model.mla.indexer if model.mla else None
    return chooser.chosen if chooser is not None and 0 < chooser.chosen < model.max_position else None


def rope_elements(model: Dimensions) -> int:
    """Elements of the tables of cosines and sines over all positions."""
    key = model.head_dim or model.hidden // model.heads
    rotated = model.mla.qk_rope_head_dim if model.mla else round(key * model.rotary_share)
    return sum(positions * size for positions, size in model.rope_tables or ((model.max_position, rotated),))


def _facts(model: Dimensions, layers: Sequence[LayerSum]) -> ModelFacts:
    # One entry for each cache; of a layer that has two, the first has its parameters.
    attention = [
        (cache, heads, layer if first == 0 else LayerSum())
        for layer in layers
        for first, (cache, heads) in enumerate(layer.caches)
    ]
    active = model.moe.active if model.moe else 0
    experts = sum((layer.experts for layer in layers), Counter[tuple[int, int]]())
    columns = sum((layer.columns for layer in layers), Counter[int]())
    table = model.vocab * model.hidden
    output = table + (model.vocab if model.head_bias else 0)
    vocabulary = output + (0 if model.tie_embeddings else table)
    linears = sum((layer.linears for layer in layers), Counter[LinearShape]())
    linears[LinearShape(model.vocab, model.hidden, model.head_bias, kept=True)] += 1
    inside = sum(layer.parameters for layer in layers)
    return ModelFacts(
        architecture=model.arch,
        layers=tuple(cache for cache, _, _ in attention),
        heads=tuple(heads for _, heads, _ in attention),
        hidden=model.hidden,
        intermediate=max([0, *columns, *(width * active for _, width in experts)]),
        vocabulary=model.vocab,
        max_positions=model.max_position,
        parameters=inside + vocabulary + _norm(model) + model.extra_parameters,
        native_dtype=model.native_dtype or "bfloat16",
        query_parameters=tuple(layer.queries for _, _, layer in attention),
        key_parameters=tuple(layer.keys for _, _, layer in attention),
        columns=tuple(Columns(width, count) for width, count in columns.items()),
        experts=tuple(ExpertColumns(*shape, count) for shape, count in experts.items()),
        vocabulary_parameters=vocabulary,
        output_parameters=output,
        active_experts=active,
        linears=tuple(linears.items()),
        layer_parameters=tuple(layer.parameters for layer in layers),
    )


def _states(model: Dimensions, layers: Sequence[LayerSum]) -> tuple[StateLayers, ...]:
    element = _ELEMENT_BYTES[model.native_dtype or "bfloat16"]
    sizes = dict.fromkeys(layer.state_elements for layer in layers if layer.state_elements)
    groups = [[layer for layer in layers if layer.state_elements == size] for size in sizes]
    return tuple(
        StateLayers(len(group), group[0].state_elements * element, sum(layer.state for layer in group))
        for group in groups
    )


def _layer(model: Dimensions, index: int, kind: str) -> LayerSum:
    layer = LayerSum()
    add_mixer(layer, model, index, kind)
    if model.moe is not None and (kind == EXPERTS_ALONE or (kind not in ALONE and model.has_experts(index))):
        _add_experts(layer, model, model.moe)
    elif kind not in ALONE or kind == MLP_ALONE:
        _add_mlp(layer, model, model.intermediate or 0)
    layer.rest += _norm(model) * (1 if kind in ALONE else model.norms)
    return layer


def _norm(model: Dimensions) -> int:
    return model.hidden * (2 if model.norm_bias else 1)


def _add_mlp(layer: LayerSum, model: Dimensions, width: int) -> None:
    if not width:
        return
    for _ in range(2 if model.gated_mlp else 1):
        layer.columns[width] += layer.linear(width, model.hidden, model.mlp_bias)
    down = layer.linear(model.hidden, width, model.mlp_bias)
    layer.columns[width] += model.hidden * width
    layer.rest += down - model.hidden * width


def _add_experts(layer: LayerSum, model: Dimensions, moe: Experts) -> None:
    width = moe.moe_intermediate
    up = LinearShape((2 if model.gated_mlp else 1) * width, model.hidden, moe.bias, expert=True)
    down = LinearShape(model.hidden, width, moe.bias, expert=True)
    for shape in (up, down):
        layer.linears[shape] += moe.experts
        layer.experts[moe.experts, width] += moe.experts * shape.columns * (shape.depth + shape.bias)
    layer.rest += moe.experts * (model.hidden + moe.bias) + moe.extra
    _add_mlp(layer, model, moe.shared_intermediate_total)
    if moe.beside_dense:
        _add_mlp(layer, model, model.intermediate or 0)
    if moe.shared_gate:
        layer.rest += layer.linear(1, model.hidden, kept=True)
