"""What mixes positions in each kind of layer: attention of every sort, delta nets, Mamba; as parameters and caches.

Public: add_mixer(layer, dimensions, index, kind). The rest of a layer is `compose`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from backend.planner.fit.dimensions import (
    CHUNKED,
    DELTA,
    EXPERTS_ALONE,
    HEAVY,
    LIGHT,
    MAMBA_ALONE,
    MLP_ALONE,
    SLIDING,
    Compressed,
    DeltaNet,
    Dimensions,
    Heads,
    Indexer,
    Latent,
    Mamba,
)
from backend.planner.fit.layer_sum import LayerSum
from kvcache.layout import Keeps, LayerCache

Sizes = TypeVar("Sizes", DeltaNet, Mamba)


def add_mixer(layer: LayerSum, model: Dimensions, index: int, kind: str) -> None:
    """Adds what the layer of that index and kind has, its norms of the hidden size excepted."""
    if kind in _OTHERS:
        _OTHERS[kind](layer, model)
    elif model.compressed is not None:
        _compressed(layer, model, model.compressed, kind)
    elif model.mla is not None:
        _latent(layer, model, model.mla, index)
    else:
        _attention(layer, model, index, kind)


def _attention(layer: LayerSum, model: Dimensions, index: int, kind: str) -> None:
    own = (model.sliding if kind in (SLIDING, CHUNKED) else model.full) or Heads()
    heads = own.heads or model.heads
    kv_heads = own.kv_heads or model.kv_heads or model.heads
    key = own.head_dim or model.head_dim or model.hidden // model.heads
    value = own.value_dim or (key if own.head_dim else model.value_dim or key)
    layer.queries += layer.linear(heads * key * (2 if model.output_gate else 1), model.hidden, model.qkv_bias)
    layer.keys += layer.linear(kv_heads * key, model.hidden, model.qkv_bias)
    if not own.key_is_value:
        layer.keys += layer.linear(kv_heads * value, model.hidden, model.qkv_bias)
    output = layer.linear(model.hidden, heads * value, model.output_bias)
    # The output's bias is added once, after adding up what ranks have.
    layer.queries += model.hidden * heads * value
    layer.rest += output - model.hidden * heads * value
    if model.head_gate:
        layer.rest += layer.linear(heads, model.hidden)
    layer.rest += {"": 0, "head": 2 * key, "all": (heads + kv_heads) * key}[model.qk_norm]
    layer.rest += heads if model.sinks == "all" or (model.sinks == "sliding" and kind == SLIDING) else 0
    if model.indexer is not None and model.indexer.is_in(index):
        _indexer(layer, model, model.indexer)
    layer.caches.append((_cache(model, kind, kv_heads, key, value), heads))


def _cache(model: Dimensions, kind: str, kv_heads: int, key: int, value: int) -> LayerCache:
    window = model.sliding_window or 0
    if kind not in (SLIDING, CHUNKED) or window >= model.max_position:
        return LayerCache(Keeps.FULL, None, kv_heads, key, value)
    return LayerCache(Keeps.SLIDING if kind == SLIDING else Keeps.CHUNKED, window, kv_heads, key, value)


def _indexer(layer: LayerSum, model: Dimensions, indexer: Indexer) -> None:
    """Of attention with heads: queries and a key of its own, with norms (MiniMax-M3)."""
    layer.rest += layer.linear(indexer.heads * indexer.head_dim, model.hidden)
    layer.rest += layer.linear(indexer.head_dim, model.hidden) + 2 * indexer.head_dim


def _latent(layer: LayerSum, model: Dimensions, latent: Latent, index: int) -> None:
    key, rank = latent.qk_nope_head_dim + latent.qk_rope_head_dim, latent.q_lora_rank
    if rank is None:
        layer.queries += layer.linear(model.heads * key, model.hidden)
    else:
        layer.rest += layer.linear(rank, model.hidden) + rank
        layer.queries += layer.linear(model.heads * key, rank)
    layer.rest += layer.linear(latent.kv_lora_rank + latent.qk_rope_head_dim, model.hidden) + latent.kv_lora_rank
    # Served, it is two products with the latents, and no linear that a format of ours could store.
    layer.queries += model.heads * (latent.qk_nope_head_dim + latent.v_head_dim) * latent.kv_lora_rank
    layer.queries += layer.linear(model.hidden, model.heads * latent.v_head_dim)
    if latent.indexer is not None and latent.indexer.is_in(index):
        chooser = layer.linear(latent.indexer.heads * latent.indexer.head_dim, rank or model.hidden)
        chooser += layer.linear(latent.indexer.head_dim, model.hidden) + 2 * latent.indexer.head_dim
        chooser += layer.linear(latent.indexer.heads, model.hidden)
        layer.rest += chooser
        layer.choosers += chooser
    row = latent.kv_lora_rank + latent.qk_rope_head_dim
    layer.caches.append((LayerCache(Keeps.LATENT, None, 1, row, latent.kv_lora_rank), model.heads))


def _compressed(layer: LayerSum, model: Dimensions, form: Compressed, kind: str) -> None:
    size = model.head_dim or 0
    layer.rest += layer.linear(form.q_lora_rank, model.hidden) + form.q_lora_rank
    layer.queries += layer.linear(model.heads * size, form.q_lora_rank)
    layer.keys += layer.linear(size, model.hidden)
    layer.queries += layer.linear(form.output_groups * form.output_rank, model.heads * size // form.output_groups)
    layer.queries += layer.linear(model.hidden, form.output_groups * form.output_rank)
    layer.rest += size + (model.heads if model.sinks else 0)
    mixed = form.streams * (form.streams + 2)
    layer.rest += 2 * (mixed * form.streams * model.hidden + mixed + 3)
    # Key and value of a position are one row of `size` elements, halves of which stand for them here.
    window = LayerCache(Keeps.SLIDING, model.sliding_window, 1, size // 2, size - size // 2)
    layer.caches.append((window, model.heads))
    if kind == LIGHT:
        index = form.indexer
        layer.rest += _compressor(layer, model.hidden, size, form.light, 2)
        layer.rest += _compressor(layer, model.hidden, index.head_dim, form.light, 2)
        layer.rest += layer.linear(index.heads * index.head_dim, form.q_lora_rank)
        layer.rest += layer.linear(index.heads, model.hidden)
        row = -(-(size + index.head_dim) // form.light)
    elif kind == HEAVY:
        layer.rest += _compressor(layer, model.hidden, size, form.heavy, 1)
        row = -(-size // form.heavy)
    else:
        return
    # One row for many positions: its part of each.
    layer.caches.append((LayerCache(Keeps.LATENT, None, 1, row, row), model.heads))


def _compressor(layer: LayerSum, hidden: int, size: int, positions: int, overlap: int) -> int:
    return 2 * layer.linear(overlap * size, hidden) + positions * overlap * size + size


def _delta(layer: LayerSum, model: Dimensions) -> None:
    net = _known(model.delta, "delta")
    keys, values = net.key_heads * net.key_dim, net.value_heads * net.value_dim
    mixed = 2 * keys + values
    layer.state += layer.linear(mixed, model.hidden) + layer.linear(values, model.hidden)
    layer.state += layer.linear(net.value_heads, model.hidden) + layer.linear(net.value_heads, model.hidden)
    layer.state += layer.linear(model.hidden, values) + mixed * net.kernel + 2 * net.value_heads
    layer.rest += net.value_dim
    layer.state_elements = mixed * net.kernel + net.value_heads * net.key_dim * net.value_dim


def _mamba(layer: LayerSum, model: Dimensions) -> None:
    net = _known(model.mamba, "mamba")
    inner = net.heads * net.head_dim
    mixed = inner + 2 * net.groups * net.state
    layer.state += layer.linear(inner + mixed + net.heads, model.hidden) + layer.linear(model.hidden, inner)
    layer.state += mixed * (net.kernel + 1) + 3 * net.heads + inner
    layer.state_elements = mixed * net.kernel + inner * net.state


def _known(sizes: Sizes | None, name: str) -> Sizes:
    """Sizes that a layer of the pattern needs. Raises ValueError where the dimensions have none."""
    if sizes is None:
        raise ValueError(f"the pattern of layers needs {name}, which the dimensions lack")
    return sizes


def _nothing(layer: LayerSum, model: Dimensions) -> None:
    """A layer that is an MLP alone."""


_OTHERS: Mapping[str, Callable[[LayerSum, Dimensions], None]] = MappingProxyType(
    {DELTA: _delta, MAMBA_ALONE: _mamba, MLP_ALONE: _nothing, EXPERTS_ALONE: _nothing}
)
