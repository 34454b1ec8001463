"""cut: takes a model on meta down to one rank's part, in place, before its layers are replaced and weights are read.

Modules keep their classes and their code: they see fewer heads and narrower layers. What their code counts heads by
(attributes, and the config that some of them ask) is told the rank's own numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backend.parallel.division import HeadShare
from backend.surgery.cuts import Cut, Cuts
from backend.surgery.trace import Traced, TracedLayer
from kvcache.layout import Keeps


def cut_model(model: nn.Module, traced: Traced, cuts: Cuts) -> Traced:
    """Applies the cuts to the model's parameters and modules; returns what tracing the result would find."""
    replace_parameters(model, cuts.tensors)
    for layer in traced.modules:
        if layer.name in cuts.heads:
            _count_own_heads(model.get_submodule(layer.name), layer, cuts.heads[layer.name])
    return replace(traced, layers=tuple(_own(layer, cuts) for layer in traced.layers))


def replace_parameters(model: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """Cuts parameters, those on meta in shape only; tied ones stay one, and linear layers know their new sizes."""
    made: dict[int, nn.Parameter] = {}
    for name, cut in cuts.items():
        path, _, short = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = module._parameters.get(short)
        if parameter is None:
            continue
        if id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(take(parameter, cut), requires_grad=parameter.requires_grad)
        module._parameters[short] = made[id(parameter)]
        if isinstance(module, nn.Linear) and short == "weight":
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.padding_idx = module.weight.shape[0], None


def take(tensor: Tensor, cut: Cut) -> Tensor:
    """The part of the tensor that the cut leaves; a view where that is one range."""
    start, count = int(cut.index[0]), len(cut.index)
    if tensor.device.type == "meta":
        shape = list(tensor.shape)
        shape[cut.dim] = count
        return tensor.new_empty(shape)
    if int(cut.index[-1]) - start == count - 1 and bool((cut.index.diff() == 1).all()):
        return tensor.detach().narrow(cut.dim, start, count)
    return tensor.detach().index_select(cut.dim, cut.index)


def _own(layer: TracedLayer, cuts: Cuts) -> TracedLayer:
    share = cuts.heads.get(layer.name)
    if share is None:
        return layer
    if layer.cache.keeps is Keeps.LATENT:
        return replace(layer, heads=len(share.heads))
    return replace(layer, heads=len(share.heads), cache=replace(layer.cache, kv_heads=len(share.kv_heads)))


# How families call what they count by; the values decide, too.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_query_heads", "total_num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads", "num_k_heads", "num_v_heads")
_GROUPS = ("num_key_value_groups", "num_kv_groups", "n_rep", "num_query_groups")


def _count_own_heads(module: nn.Module, layer: TracedLayer, share: HeadShare) -> None:
    """Tells the module, and what lies in it, the rank's own head counts."""
    cache = layer.expanded
    heads, kv_heads = len(share.heads), len(share.kv_heads)
    changes: dict[tuple[str, int], int] = {
        **{(name, layer.heads): heads for name in _HEADS},
        **{(name, cache.kv_heads): kv_heads for name in _KV_HEADS},
        **{(name, layer.heads // cache.kv_heads): heads // kv_heads for name in _GROUPS},
    }
    for size in {cache.key_size, cache.value_size}:
        for name in ("q_size", "query_size", "query_pos", "embed_dim", "hidden_size", "all_head_size", "inner_dim"):
            changes[(name, layer.heads * size)] = heads * size
        for name in ("kv_size", "key_size", "value_size", "kv_dim"):
            changes[(name, cache.kv_heads * size)] = kv_heads * size
    configs: dict[int, Any] = {}
    for child in module.modules():
        for name, value in list(vars(child).items()):
            if type(value) is int and (name, value) in changes:
                setattr(child, name, changes[(name, value)])
        config: Any = vars(child).get("config")
        if config is not None:
            own = configs.setdefault(id(config), _own_config(config, changes))
            child.config = own


def _own_config(config: Any, changes: Mapping[tuple[str, int], int]) -> Any:
    own = copy.copy(config)
    for name in (*_HEADS, *_KV_HEADS):
        value = _setting(own, name)
        if type(value) is int and (name, value) in changes:
            setattr(own, name, changes[(name, value)])
    return own


def _setting(config: Any, name: str) -> object:
    """The config's value; None where it has none, or one for each layer, which modules have asked for already."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None


def zeros_elsewhere(cuts: Cuts, rank: int) -> frozenset[str]:
    """Parameters that only the first rank fills: what is added to a sum must be added once."""
    return frozenset() if rank == 0 else frozenset(f"{name}.bias" for name in cuts.summed)


def check_same(expected: Any, given: Any, cuts: Cuts) -> list[str]:
    """Names of modules of a cut flow that hand over something else than their part of what the whole one did."""
    wrong: list[str] = []
    for name, call in expected.attention.items():
        share, own = cuts.heads.get(name), given.attention.get(name)
        if own is None:
            wrong.append(name)
            continue
        pairs = [(call.query, own.query, share and share.heads), (call.key, own.key, share and share.kv_heads)]
        pairs.append((call.value, own.value, share and share.kv_heads))
        for whole, part, kept in pairs:
            wanted = whole if kept is None else whole[:, list(kept)]
            if wanted.shape != part.shape or not torch.allclose(wanted, part, rtol=1e-4, atol=1e-5):
                wrong.append(name)
                break
    for name, sink in expected.inputs.items():
        cut = cuts.tensors.get(f"{name}.weight")
        wanted = take(sink, Cut(-1, cut.index)) if cut is not None and cut.dim == 1 else sink
        own_sink = given.inputs.get(name)
        if own_sink is None or wanted.shape != own_sink.shape or not torch.allclose(wanted, own_sink, 1e-4, 1e-5):
            wrong.append(name)
    runs = zip(expected.again, given.again, strict=True)
    return wrong + [name for whole, part in runs for name in check_same(whole, part, cuts)]
