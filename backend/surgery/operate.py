"""Surgery: replaces a model's linears, MLPs, norms and rotary modules by ours, before weights are loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from backend.surgery.attention import ServedAttention, served_attention
from backend.surgery.glu import gated_mlp
from backend.surgery.latent import LatentAttention
from backend.surgery.linears import PartLinear, SharedProduct, merge, mergeable, serve
from backend.surgery.norm import ServedRMSNorm, rms_norm
from backend.surgery.rope import RopeLengths, RopeRegimes, replace_rope
from backend.surgery.tempered import tell_positions
from backend.surgery.trace import Traced, TracedLayer


def operate(model: PreTrainedModel, traced: Traced, lengths: RopeLengths) -> RopeRegimes:
    """Operates on a model built on meta, whose module paths are those of the traced one.

    Returns how its keys depend on lengths.
    """
    _replace_mlps(model)
    _replace_attention(model, traced)
    _merge_projections(model, traced)
    _replace_norms(model)
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(path, serve(module, path))
    tell_positions(model, lengths)
    return replace_rope(model, model.config, lengths)


def _replace_mlps(model: nn.Module) -> None:
    for path, module in list(model.named_modules()):
        linears = sum(type(child) is nn.Linear for child in module.children())
        if linears in (2, 3) and path:
            replacement = gated_mlp(module, path)
            if replacement is not None:
                model.set_submodule(path, replacement)


def _replace_attention(model: nn.Module, traced: Traced) -> None:
    groups = {names[0].rpartition(".")[0]: names for names in traced.shared_inputs}
    for slot, layer in enumerate(traced.layers):
        if layer in traced.layers[:slot]:  # the same module's next run
            continue
        module = model.get_submodule(layer.name)
        if layer.latent is not None:
            model.set_submodule(layer.name, LatentAttention(module, slot, layer.heads, layer.latent))
        # What runs several times is no layer of a fused stack, which knows one slot of each.
        elif layer.name in groups and layer.name not in traced.repeated and _is_rotated(layer, traced):
            replacement = served_attention(module, layer, slot, groups[layer.name])
            if replacement is not None:
                model.set_submodule(layer.name, replacement)


def _is_rotated(layer: TracedLayer, traced: Traced) -> bool:
    return traced.rotary_sizes.get(layer.name) == layer.cache.key_size


def _merge_projections(model: nn.Module, traced: Traced) -> None:
    """Merges an attention module's linears that the trace saw being called with one and the same tensor."""
    attention = {layer.name for layer in traced.layers}
    for names in traced.shared_inputs:
        parent = names[0].rpartition(".")[0]
        served = isinstance(model.get_submodule(parent), ServedAttention)
        if parent in attention and not served and all(name.rpartition(".")[0] == parent for name in names):
            _merge(model, parent, names)


def _merge(model: nn.Module, parent: str, names: Iterable[str]) -> None:
    names = list(names)
    linears = [model.get_submodule(name) for name in names]
    if not mergeable(linears):  # pyright: ignore[reportArgumentType]
        return
    merged = merge(linears, names)  # pyright: ignore[reportArgumentType]
    product = SharedProduct(merged)
    model.get_submodule(parent).add_module(f"merged_{names[0].rpartition('.')[2]}", merged)
    for part in merged.parts:
        model.set_submodule(part.name, PartLinear(product, part))


def _replace_norms(model: nn.Module) -> None:
    """Probes one norm of each kind, and replaces all that are like it."""
    alike: dict[tuple[object, ...], list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, module in model.named_modules():
        kept = isinstance(module, nn.Linear | ServedRMSNorm)
        if "weight" in module._parameters and len(module._parameters) == 1 and not kept:
            plain = tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, int | float | str)))
            weight = module._parameters["weight"]
            if weight is not None and weight.dim() == 1:
                alike[(type(module), weight.shape[0], plain)].append((path, module))
    for members in alike.values():
        found = rms_norm(members[0][1])
        if found is not None:
            for path, module in members:
                weight = module._parameters["weight"]
                if weight is not None:
                    model.set_submodule(path, ServedRMSNorm(weight, found.epsilon, found.offset))
