"""Dimensions: a model by its sizes, as a config or the catalogue gives them. What follows of them is `compose`'s.

Public: Dimensions, and its parts Experts, Latent, Indexer, Compressed, DeltaNet, Mamba, Heads.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

# What a layer is, one letter each in a pattern. Attention over all positions, a window, a chunk; gated delta net;
# attention to a window and to what is compressed 4-fold, or 128-fold.
FULL, SLIDING, CHUNKED, DELTA, LIGHT, HEAVY = "F", "S", "C", "L", "l", "h"
# Layers of hybrids that have one thing only: attention, Mamba, an MLP, experts.
ATTENTION_ALONE, MAMBA_ALONE, MLP_ALONE, EXPERTS_ALONE = "*", "M", "-", "E"
ALONE = (ATTENTION_ALONE, MAMBA_ALONE, MLP_ALONE, EXPERTS_ALONE)


class Experts(Struct, frozen=True):
    """Mixtures of experts.

    Attributes:
        experts, active, moe_intermediate: how many a layer has, how many a token passes, how wide each is.
        shared_intermediate_total: width of what every token passes beside them, 0 for none.
        dense_layers: the first layers that have an MLP instead; with `interleave_step` n, all but every nth.
        bias: whether experts and router have biases. shared_gate: whether the shared expert has a gate.
        beside_dense: whether a layer has an MLP of `intermediate` columns as well.
        extra: parameters that a layer has beside all that (scales, norms of its parts).
    """

    experts: int
    active: int
    moe_intermediate: int
    shared_intermediate_total: int = 0
    dense_layers: int = 0
    interleave_step: int = 1
    bias: bool = False
    shared_gate: bool = False
    beside_dense: bool = False
    extra: int = 0


class Indexer(Struct, frozen=True):
    """What chooses the keys that a layer attends to; of each position it keeps a key of its own.

    `layers` tells with a letter a layer ("1" or "0") which have one; all where it is empty. `chosen` is how many keys
    it chooses for a token; 0 where nobody says.
    """

    heads: int
    head_dim: int
    layers: str = ""
    chosen: int = 0

    def is_in(self, layer: int) -> bool:
        return not self.layers or self.layers[layer % len(self.layers)] == "1"


class Latent(Struct, frozen=True):
    """Multi-head latent attention; `q_lora_rank` None where queries are made in one step."""

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    indexer: Indexer | None = None


class Compressed(Struct, frozen=True):
    """Attention with one KV head, to a window and to compressed keys (DeepSeek-V4).

    Attributes:
        q_lora_rank, output_groups, output_rank: of the products that make queries, and the output in two steps.
        light, heavy: how many positions become one; light layers have an indexer.
        streams: hidden states side by side, which small products mix.
    """

    q_lora_rank: int
    output_groups: int
    output_rank: int
    light: int
    heavy: int
    streams: int
    indexer: Indexer


class DeltaNet(Struct, frozen=True):
    """Gated delta net layers, which keep a state."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int


class Mamba(Struct, frozen=True):
    """Mamba-2 layers, which keep a state."""

    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int


class Heads(Struct, frozen=True):
    """Attention of one kind of layers that differs from the others'; None as they have it."""

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    key_is_value: bool = False


class Dimensions(Struct, frozen=True, kw_only=True):
    """Sizes of a text model. Field names are the catalogue's.

    Attributes:
        arch: transformers' class name.
        head_dim: of queries and keys; None for `hidden / heads`. value_dim: of values where it differs.
        intermediate: columns of a dense MLP; None where there is none.
        sliding_window: positions that a sliding layer (or a chunk) sees.
        layer_pattern: letters as above, repeated to the count of layers; empty where all are alike.
        full, sliding: attention of these kinds of layers where it differs.
        quant: how the checkpoint is packed, by a name of `packings`; None for not at all.
        qkv_bias, output_bias, mlp_bias, norm_bias, head_bias: which biases there are.
        qk_norm: "head" for norms of one head's size for queries and keys, "all" for norms over all heads together.
        output_gate: whether queries come with a gate as large; head_gate: with one number a head.
        sinks: which layers have a number for each head.
        indexer: of attention without latents.
        norms: a layer's, of the hidden size. gated_mlp: whether an MLP multiplies two products.
        extra_parameters: of the text model, that nothing else here tells; whole on every rank.
        other_parameters: outside the text model.
        rope_tables: positions and rotated elements of each table of cosines and sines; empty for one of the longest
            context. rotary_share: part of a head that is rotated.
    """

    layers: int
    hidden: int
    heads: int
    vocab: int
    max_position: int
    arch: str = ""
    kv_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    intermediate: int | None = None
    tie_embeddings: bool = False
    native_dtype: str | None = None
    quant: str | None = None
    sliding_window: int | None = None
    layer_pattern: str = ""
    full: Heads | None = None
    sliding: Heads | None = None
    moe: Experts | None = None
    mla: Latent | None = None
    compressed: Compressed | None = None
    delta: DeltaNet | None = None
    mamba: Mamba | None = None
    indexer: Indexer | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    head_bias: bool = False
    qk_norm: Literal["", "head", "all"] = ""
    output_gate: bool = False
    head_gate: bool = False
    sinks: Literal["", "sliding", "all"] = ""
    norms: int = 2
    gated_mlp: bool = True
    extra_parameters: int = 0
    other_parameters: int = 0
    rope_tables: tuple[tuple[int, int], ...] = ()
    rotary_share: float = 1.0

    @property
    def kinds(self) -> str:
        """The letter of each layer."""
        unit = self.layer_pattern or (SLIDING if self.sliding_window else FULL)
        return (unit * -(-self.layers // len(unit)))[: self.layers]

    def has_experts(self, layer: int) -> bool:
        """Whether that layer has experts where others have an MLP."""
        if self.moe is None:
            return False
        if self.moe.interleave_step > 1:
            return (layer + 1) % self.moe.interleave_step == 0
        return layer >= self.moe.dense_layers
