"""latent_probe: which attention modules LatentAttention can stand in for; recognised by what they compute."""

from __future__ import annotations

import copy
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery import hook
from backend.surgery.choosers import TOLD, EveryKey, Idle
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


class LatentProbe:
    """Asks the layers of one model; small random weights are drawn once for all of them."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(17)
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    def as_latents(self, layer: TracedLayer, module: nn.Module) -> TracedLayer:
        """The layer as it is served from latents, where its module is one that LatentAttention equals; else unchanged.

        module: of a model whose parameters are on meta; it is not changed.
        """
        sizes = _sizes(layer, module)
        form = None if sizes is None else self._form(module, sizes)
        if form is None:
            return layer
        cache = LayerCache(Keeps.LATENT, None, 1, form.rank + form.rope, form.rank)
        return replace(layer, cache=cache, latent=form)

    @torch.no_grad()
    def _form(self, module: nn.Module, sizes: LatentForm) -> LatentForm | None:
        """The form under which the module, with small random layers in place of its own, does what ours does."""
        hook.register()
        small = self._small(module, sizes)
        inputs = self._draw(1, _TOKENS, _HIDDEN)
        angles = self._draw(1, _TOKENS, sizes.rope // 2)
        for rotation in ROTATIONS:
            form = replace(sizes, rotation=rotation)
            found = _compare(small, form, inputs, angles)
            if found is not None and found == _compare(small, form, inputs * 1000, angles):  # large values show clamps
                return found
        return None

    def _small(self, module: nn.Module, form: LatentForm) -> nn.Module:
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
            LATENT_NORM: (form.rank,),
            LOW_RANK_QUERY[1]: (_HIDDEN,),
        }
        for name, child in _own_children(module).items():
            probe._modules[name] = self._like(child, shapes[name])
        return probe

    def _like(self, child: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """The child with random parameters, of which the first dimension is `shape`'s and a weight has all of it."""
        small = copy.copy(child)
        small._parameters = {
            name: None
            if parameter is None
            else nn.Parameter(self._draw(*shape[: parameter.dim()]), requires_grad=False)
            for name, parameter in child._parameters.items()
        }
        return small

    def _draw(self, *shape: int) -> Tensor:
        """Random numbers such that a product over the last dimension keeps its size."""
        if shape not in self._drawn:
            numbers = torch.randn(shape, generator=self._generator)
            self._drawn[shape] = numbers / shape[-1] ** 0.5 if len(shape) == 2 else numbers
        return self._drawn[shape]


def _own_children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if not isinstance(child, Idle)}


def _sizes(layer: TracedLayer, module: nn.Module) -> LatentForm | None:
    """The sizes of a module that has the children of such attention and no others; not yet how it rotates or scales."""
    children = _own_children(module)
    query = LOW_RANK_QUERY if LOW_RANK_QUERY[0] in children else WHOLE_QUERY
    expected = {*query, LATENT, LATENT_NORM, EXPANSION, OUTPUT}
    if set(children) != expected or module._parameters or not hasattr(module, "config"):
        return None
    if layer.cache.keeps is not Keeps.FULL or layer.cache.kv_heads != layer.heads:
        return None
    linears: dict[str, Any] = {name: child for name, child in children.items() if type(child) is nn.Linear}
    if expected - set(linears) != {LATENT_NORM, *query[1:2]} or linears[EXPANSION].bias is not None:
        return None
    rank = linears[EXPANSION].in_features
    rope = linears[LATENT].out_features - rank
    form = LatentForm(rank, rope, layer.cache.key_size - rope, layer.cache.value_size, "", 1.0)
    rows = layer.heads * (form.nope + form.value), layer.heads * layer.cache.key_size
    fits = (linears[EXPANSION].out_features, linears[query[-1]].out_features) == rows and form.nope > 0
    fits = fits and linears[OUTPUT].in_features == layer.heads * form.value
    return form if fits and form.rope >= 2 and form.rope % 2 == 0 else None


def _compare(probe: nn.Module, form: LatentForm, x: Tensor, angles: Tensor) -> LatentForm | None:
    """The form with the module's own scaling, if ours then does the same; `form.rotation` is to be compared with."""
    tables = ROTATIONS[form.rotation].tables(angles)
    theirs, mine = _SumContext(form.value), _SumContext(form.rank)
    choice = {TOLD: EveryKey()} if TOLD in signature(probe.forward).parameters else {}
    try:
        given, weights, *handed = probe(
            hidden_states=x,
            position_embeddings=tables,
            attention_mask=None,
            position_ids=torch.arange(_TOKENS)[None] * 100_000,  # far positions show scalings by position
            past_key_values=None,
            context=theirs,
            **choice,
        )
        if theirs.scaling is None or weights is not None or not theirs.plain:
            return None
        if len(handed) > 1 or not all(isinstance(one, EveryKey) for one in handed):
            return None
        form = replace(form, scaling=theirs.scaling, hands_on=bool(handed))
        expected, *_ = LatentAttention(probe, 0, _HEADS, form)(x, position_embeddings=tables, context=mine)
        same = given.shape == expected.shape and (given - expected).abs().max() <= 1e-4 * expected.abs().max()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return None  # one that asks for something else than we give
    return form if same else None
