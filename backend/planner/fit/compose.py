"""From Dimensions to a KnownModel: parameters by what divides them, shapes of linears, what each layer keeps.

Public: known_model_of(name, dimensions, ...) -> KnownModel. The sums are those of transformers' models with these
sizes, which tests hold them to.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from backend.planner.fit.dimensions import (
    ATTENTION_ALONE,
    CHUNKED,
    DELTA,
    EXPERTS_ALONE,
    MAMBA_ALONE,
    MLP_ALONE,
    SLIDING,
    Dimensions,
    Heads,
)
from backend.planner.fit.known_model import KnownModel, StateLayers, StoredWeights
from backend.planner.model_facts import Columns, ExpertColumns, ModelFacts
from kvcache.layout import Keeps, LayerCache
from quant.weight_sizes import LinearShape

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def known_model_of(
    name: str, dimensions: Dimensions, *, source: str = "its dimensions", stored: StoredWeights | None = None
) -> KnownModel:
    """The model, by formulas. `stored` None takes what `dimensions.quant` says."""
    whole = _Sum(dimensions)
    for kind in enumerate(dimensions.kinds):
        whole.add_layer(*kind)
    whole.add_ends()
    return KnownModel(
        name=name,
        facts=whole.facts(),
        stored=stored or StoredWeights(packing=dimensions.quant or "model"),
        source=source,
        states=whole.states(),
        other_parameters=dimensions.other_parameters,
    )


@dataclass(slots=True)
class _Layer:
    """One layer's parameters, by what divides them."""

    queries: int = 0
    keys: int = 0
    columns: int = 0
    experts: int = 0
    state: int = 0
    rest: int = 0

    @property
    def all(self) -> int:
        return self.queries + self.keys + self.columns + self.experts + self.state + self.rest


@dataclass(slots=True)
class _Sum:
    """Adds up a model layer by layer."""

    model: Dimensions
    caches: list[LayerCache] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    columns: Counter[int] = field(default_factory=Counter)
    experts: Counter[tuple[int, int]] = field(default_factory=Counter)
    linears: Counter[LinearShape] = field(default_factory=Counter)
    state_layers: Counter[int] = field(default_factory=Counter)
    state_parameters: Counter[int] = field(default_factory=Counter)
    ends: int = 0
    vocabulary: int = 0
    output: int = 0

    def add_layer(self, index: int, kind: str) -> None:
        layer, model = _Layer(), self.model
        if kind == DELTA:
            self._delta(layer)
        elif kind == MAMBA_ALONE:
            self._mamba(layer)
        elif kind not in (MLP_ALONE, EXPERTS_ALONE):
            self._attention(layer, kind)
        if kind == EXPERTS_ALONE or (kind not in "*M-" and self._has_experts(index)):
            self._experts(layer)
        elif kind not in (ATTENTION_ALONE, MAMBA_ALONE):
            self._mlp(layer, model.intermediate or 0)
        alone = kind in (ATTENTION_ALONE, MAMBA_ALONE, MLP_ALONE, EXPERTS_ALONE)
        layer.rest += self._norm() * (1 if alone else model.norms)
        if layer.queries or layer.keys:
            self.queries.append(layer.queries)
            self.keys.append(layer.keys)
        self.layers.append(layer.all)

    def add_ends(self) -> None:
        """Embedding, output layer, last norm."""
        model = self.model
        table = model.vocab * model.hidden
        self.output = table + (model.vocab if model.head_bias else 0)
        self.vocabulary = self.output + (0 if model.tie_embeddings else table)
        self.ends = self.vocabulary + (self._norm() if model.final_norm else 0) + model.extra_parameters
        self.linears[LinearShape(model.vocab, model.hidden, model.head_bias, kept=True)] += 1

    def facts(self) -> ModelFacts:
        model, moe = self.model, self.model.moe
        active = moe.active if moe else 0
        return ModelFacts(
            architecture=model.arch,
            layers=tuple(self.caches),
            heads=tuple(self.heads),
            hidden=model.hidden,
            intermediate=max(model.intermediate or 0, active * moe.moe_intermediate if moe else 0),
            vocabulary=model.vocab,
            max_positions=model.max_position,
            parameters=sum(self.layers) + self.ends,
            native_dtype=model.native_dtype or "bfloat16",
            query_parameters=tuple(self.queries),
            key_parameters=tuple(self.keys),
            columns=tuple(Columns(width, count) for width, count in self.columns.items()),
            experts=tuple(ExpertColumns(*shape, count) for shape, count in self.experts.items()),
            vocabulary_parameters=self.vocabulary,
            output_parameters=self.output,
            active_experts=active,
            linears=tuple(self.linears.items()),
            layer_parameters=tuple(self.layers),
        )

    def states(self) -> tuple[StateLayers, ...]:
        return tuple(StateLayers(count, size, self.state_parameters[size]) for size, count in self.state_layers.items())

    def _norm(self) -> int:
        return self.model.hidden * (2 if self.model.norm_bias else 1)

    def _linear(self, columns: int, depth: int, bias: bool = False, kept: bool = False) -> int:
        """Counts a linear; its parameters."""
        self.linears[LinearShape(columns, depth, bias, kept)] += 1
        return columns * (depth + bias)

    def _attention(self, layer: _Layer, kind: str) -> None:
        model = self.model
        if model.mla is not None:
            self._latent(layer)
            return
        own = (model.sliding if kind in (SLIDING, CHUNKED) else model.full) or Heads()
        heads = own.heads or model.heads
        kv_heads = own.kv_heads or model.kv_heads or model.heads
        key = own.head_dim or model.head_dim or model.hidden // model.heads
        value = own.value_dim or (own.head_dim if own.head_dim else model.value_dim) or key
        layer.queries += self._linear(heads * key * (2 if model.output_gate else 1), model.hidden, model.qkv_bias)
        layer.keys += self._linear(kv_heads * key, model.hidden, model.qkv_bias)
        if not own.key_is_value:
            layer.keys += self._linear(kv_heads * value, model.hidden, model.qkv_bias)
        output = self._linear(model.hidden, heads * value, model.output_bias)
        # An output's bias is added once, after adding up what ranks have.
        layer.queries += model.hidden * heads * value
        layer.rest += output - model.hidden * heads * value
        if model.head_gate:
            layer.rest += self._linear(heads, model.hidden, kept=True)
        norms = {"": 0, "head": 2 * key, "query": key, "all": (heads + kv_heads) * key}
        layer.rest += norms[model.qk_norm]
        layer.rest += heads if model.sinks == "all" or (model.sinks == "sliding" and kind == SLIDING) else 0
        keeps = {SLIDING: Keeps.SLIDING, CHUNKED: Keeps.CHUNKED}.get(kind, Keeps.FULL)
        window = None if keeps is Keeps.FULL else model.sliding_window
        self.caches.append(LayerCache(keeps, window, kv_heads, key, value))
        self.heads.append(heads)

    def _latent(self, layer: _Layer) -> None:
        model, latent = self.model, self.model.mla
        assert latent is not None
        key = latent.qk_nope_head_dim + latent.qk_rope_head_dim
        rank = latent.q_lora_rank
        if rank is None:
            layer.queries += self._linear(model.heads * key, model.hidden)
        else:
            layer.rest += self._linear(rank, model.hidden) + rank
            layer.queries += self._linear(model.heads * key, rank)
        layer.rest += self._linear(latent.kv_lora_rank + latent.qk_rope_head_dim, model.hidden) + latent.kv_lora_rank
        # Served, it is two products with the latents, and no linear that a format could store.
        layer.queries += model.heads * (latent.qk_nope_head_dim + latent.v_head_dim) * latent.kv_lora_rank
        layer.queries += self._linear(model.hidden, model.heads * latent.v_head_dim)
        if latent.indexer is not None:
            size = latent.indexer.heads * latent.indexer.head_dim
            layer.rest += self._linear(size, rank or model.hidden)
            layer.rest += self._linear(latent.indexer.head_dim, model.hidden) + 2 * latent.indexer.head_dim
            layer.rest += self._linear(latent.indexer.heads, model.hidden)
        row = latent.kv_lora_rank + latent.qk_rope_head_dim
        self.caches.append(LayerCache(Keeps.LATENT, None, 1, row, latent.kv_lora_rank))
        self.heads.append(model.heads)

    def _delta(self, layer: _Layer) -> None:
        model, net = self.model, self.model.delta
        assert net is not None
        keys, values = net.key_heads * net.key_dim, net.value_heads * net.value_dim
        mixed = 2 * keys + values
        layer.state += self._linear(mixed, model.hidden) + self._linear(values, model.hidden)
        layer.state += 2 * self._linear(net.value_heads, model.hidden) + self._linear(model.hidden, values)
        self.linears[LinearShape(net.value_heads, model.hidden)] += 1
        layer.state += mixed * net.kernel + 2 * net.value_heads
        layer.rest += net.value_dim
        self._keep_state(layer, mixed * net.kernel + net.value_heads * net.key_dim * net.value_dim)

    def _mamba(self, layer: _Layer) -> None:
        model, net = self.model, self.model.mamba
        assert net is not None
        inner, states = net.heads * net.head_dim, net.groups * net.state
        mixed = inner + 2 * states
        layer.state += self._linear(inner + mixed + net.heads, model.hidden) + self._linear(model.hidden, inner)
        layer.state += mixed * (net.kernel + 1) + 3 * net.heads + inner
        self._keep_state(layer, mixed * net.kernel + inner * net.state)

    def _keep_state(self, layer: _Layer, elements: int) -> None:
        size = elements * _ELEMENT_BYTES[self.model.native_dtype or "bfloat16"]
        self.state_layers[size] += 1
        self.state_parameters[size] += layer.state

    def _has_experts(self, index: int) -> bool:
        moe = self.model.moe
        if moe is None:
            return False
        if moe.interleave_step > 1:
            return (index + 1) % moe.interleave_step == 0
        return index >= moe.dense_layers

    def _mlp(self, layer: _Layer, width: int) -> None:
        if not width:
            return
        model = self.model
        ups = 2 if model.gated_mlp else 1
        count = sum(self._linear(width, model.hidden, model.mlp_bias) for _ in range(ups))
        down = self._linear(model.hidden, width, model.mlp_bias)
        bias = model.hidden if model.mlp_bias else 0
        layer.columns += count + down - bias
        layer.rest += bias
        self.columns[width] += count + down - bias

    def _experts(self, layer: _Layer) -> None:
        model, moe = self.model, self.model.moe
        assert moe is not None
        width, ups = moe.moe_intermediate, 2 if model.gated_mlp else 1
        up = LinearShape(ups * width, model.hidden, moe.bias, expert=True)
        down = LinearShape(model.hidden, width, moe.bias, expert=True)
        for shape in (up, down):
            self.linears[shape] += moe.experts
            layer.experts += moe.experts * shape.columns * (shape.depth + shape.bias)
        self.experts[moe.experts, width] += layer.experts
        layer.rest += moe.experts * (model.hidden + moe.bias)
        self._mlp(layer, moe.shared_intermediate_total)
        if moe.beside_dense:
            self._mlp(layer, model.intermediate or 0)
        if moe.shared_gate:
            layer.rest += self._linear(1, model.hidden, kept=True)
