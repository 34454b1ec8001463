"""latent_probe: which attention modules LatentAttention can stand in for; recognised by what they compute."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery import hook
from backend.surgery.latent import (
    EXPANSION,
    LATENT,
    LATENT_NORM,
    LOW_RANK_QUERY,
    OUTPUT,
    WHOLE_QUERY,
    LatentAttention,
    LatentForm,
)
from backend.surgery.rotation import ROTATIONS
from backend.surgery.trace import TracedLayer
from kvcache.layout import Keeps, LayerCache

_HIDDEN, _HEADS, _TOKENS = 8, 2, 3


class _SumContext:
    """An AttentionContext without softmax: values summed by their scores, so that relative errors stay as they are."""

    def __init__(self, value_size: int) -> None:
        self._value_size = value_size
        self.scaling: float | None = None
        self.plain = True

    def attend(
        self,
        slot: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        self.scaling, self.plain = scaling, softcap is None and sinks is None
        value = key[..., : self._value_size] if value is None else value
        group = query.shape[1] // key.shape[1]
        scores = torch.einsum("thd,shd->hts", query, key.repeat_interleave(group, 1)).tril() * scaling
        return torch.einsum("hts,shd->thd", scores, value.repeat_interleave(group, 1))


def as_latents(layer: TracedLayer, module: nn.Module) -> TracedLayer:
    """The layer as it is served from latents, where its module is one that LatentAttention equals; else unchanged.

    module: of a model whose parameters are on meta; it is not changed.
    """
    form = _form(layer, module)
    if form is None:
        return layer
    cache = LayerCache(Keeps.LATENT, None, 1, form.rank + form.rope, form.rank)
    return replace(layer, cache=cache, latent=form)


def _form(layer: TracedLayer, module: nn.Module) -> LatentForm | None:
    sizes = _sizes(layer, module)
    if sizes is None or sizes.rope < 2 or sizes.rope % 2:
        return None
    for rotation in ROTATIONS:
        form = _same(module, replace(sizes, rotation=rotation))
        if form is not None:
            return form
    return None


def _sizes(layer: TracedLayer, module: nn.Module) -> LatentForm | None:
    """The sizes of a module that has the children of such attention and no others; not yet how it rotates or scales."""
    children = dict(module.named_children())
    query = LOW_RANK_QUERY if LOW_RANK_QUERY[0] in children else WHOLE_QUERY
    expected = {*query, LATENT, LATENT_NORM, EXPANSION, OUTPUT}
    if set(children) != expected or module._parameters or layer.cache.keeps is not Keeps.FULL:
        return None
    linears: dict[str, Any] = {name: child for name, child in children.items() if type(child) is nn.Linear}
    if expected - set(linears) != {LATENT_NORM, *query[1:2]} or linears[EXPANSION].bias is not None:
        return None
    if layer.cache.kv_heads != layer.heads:
        return None
    rank = linears[EXPANSION].in_features
    rope = linears[LATENT].out_features - rank
    form = LatentForm(rank, rope, layer.cache.key_size - rope, layer.cache.value_size, "", 1.0)
    rows = layer.heads * (form.nope + form.value), layer.heads * layer.cache.key_size
    fits = (linears[EXPANSION].out_features, linears[query[-1]].out_features) == rows and form.nope > 0
    return form if fits and linears[OUTPUT].in_features == layer.heads * form.value else None


@torch.no_grad()
def _same(module: nn.Module, form: LatentForm) -> LatentForm | None:
    """The form with the module's scaling, if with small random layers in place of its own it does what ours does.

    `form.rotation` is the one to compare with.
    """
    hook.register()
    generator = torch.Generator().manual_seed(17)
    angles = torch.rand(1, _TOKENS, form.rope // 2, generator=generator) * 3
    tables = ROTATIONS[form.rotation].tables(angles)
    scaling: float | None = None
    try:
        probe = _small(module, form, generator)
        for scale in (1.0, 1000.0):  # large values show clamps, far positions show scalings by position
            x = torch.randn(1, _TOKENS, _HIDDEN, generator=generator) * scale
            theirs, mine = _SumContext(form.value), _SumContext(form.rank)
            given, weights = probe(
                hidden_states=x,
                position_embeddings=tables,
                attention_mask=None,
                position_ids=torch.arange(_TOKENS)[None] * 100_000,
                past_key_values=None,
                context=theirs,
            )
            scaling = theirs.scaling
            if scaling is None or weights is not None or not theirs.plain:
                return None
            ours = LatentAttention(probe, 0, _HEADS, replace(form, scaling=scaling))
            expected, _ = ours(x, position_embeddings=tables, context=mine)
            if given.shape != expected.shape or not (given - expected).abs().max() <= 1e-4 * expected.abs().max():
                return None
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return None  # one that asks for something else than we give
    return None if scaling is None else replace(form, scaling=scaling)


def _small(module: nn.Module, form: LatentForm, generator: torch.Generator) -> nn.Module:
    """The module with few heads, a few hidden elements and random weights; its attention goes to our hook."""
    probe: Any = copy.copy(module)
    probe._modules = dict(module._modules)
    config: Any = copy.deepcopy(module.config)
    config._attn_implementation = hook.ATTENTION
    probe.config = config
    probe.slot = 0
    queries = _HEADS * (form.nope + form.rope)
    shapes = {
        LATENT: (form.rank + form.rope, _HIDDEN),
        EXPANSION: (_HEADS * (form.nope + form.value), form.rank),
        OUTPUT: (_HIDDEN, _HEADS * form.value),
        WHOLE_QUERY[0]: (queries, _HIDDEN),
        LOW_RANK_QUERY[0]: (_HIDDEN, _HIDDEN),
        LOW_RANK_QUERY[2]: (queries, _HIDDEN),
    }
    norms = {LATENT_NORM: form.rank, LOW_RANK_QUERY[1]: _HIDDEN}
    for name, child in module.named_children():
        if name in shapes:
            probe._modules[name] = _random_linear(child, *shapes[name], generator)
        else:
            probe._modules[name] = _random_norm(child, norms[name], generator)
    return probe


def _random_linear(like: Any, rows: int, columns: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=like.bias is not None, dtype=torch.float32)
    for parameter in linear.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / columns**0.5)
    return linear


def _random_norm(like: nn.Module, size: int, generator: torch.Generator) -> nn.Module:
    norm = copy.copy(like)
    norm._parameters = {
        name: nn.Parameter(torch.randn(size, generator=generator), requires_grad=False) for name in like._parameters
    }
    return norm
