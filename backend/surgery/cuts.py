"""Cuts: what one rank keeps of a model's tensors, found by where a flow's numbers end. Cutting itself is `cut`'s.

Attention is divided by heads: a rank keeps the rows that make its heads, whichever layers they lie in and in whatever
order, and the columns of the output layer that its heads are multiplied with. What several heads need (a latent, a
norm of one head's size) every rank keeps. An MLP is divided by the columns between its layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backend.parallel.division import MULTIPLE, Division, HeadShare, divide, divide_heads
from backend.surgery.flow import AttentionCall, FlowRecord
from backend.surgery.owners import NOTHING, Owners, owners
from backend.surgery.trace import Traced, TracedLayer


@dataclass(frozen=True, slots=True)
class Cut:
    """Of a tensor: the indices [n] int64 along `dim` that stay, in order."""

    dim: int
    index: Tensor


@dataclass(slots=True)
class Cuts:
    """What one rank keeps; what is not named stays whole.

    Attributes:
        tensors: by the names that transformers gives parameters.
        outputs: by the path of a linear layer or attention module: which of its numbers are left.
        summed: linear layers whose outputs the ranks have to add up.
        heads: by attention module: the rank's heads; a module that is not named computes all of them on every rank.
        whole: attention modules that could not be divided.
        batched: by module of experts that compute every token: the cuts of its parameters.
        holders: of tensors that belong to KV heads: how many ranks hold this rank's part.
    """

    tensors: dict[str, Cut] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    summed: set[str] = field(default_factory=set)
    heads: dict[str, HeadShare] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    holders: dict[str, int] = field(default_factory=dict)
    batched: dict[str, dict[str, Cut]] = field(default_factory=dict)


def find_cuts(record: FlowRecord, traced: Traced, division: Division) -> Cuts:
    """The rank's part of every attention module and MLP that can be divided."""
    cuts = Cuts()
    for layer in traced.modules:
        if layer.name not in record.attention or not _cut_attention(cuts, record, layer, division):
            cuts.whole.append(layer.name)
    _cut_mlps(cuts, record, traced, division)
    return cuts


@dataclass(slots=True)
class _Kept:
    """For each source by name: which of its elements stay; sources that several units need are `shared`."""

    masks: dict[str, Tensor] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def add(self, name: str, found: Owners | None, keep: Tensor) -> None:
        """keep: [units] bool."""
        if found is None:
            return
        if found.units is None:
            self.shared.add(name)
            return
        owned = found.units != NOTHING
        mask = owned & keep[found.units.clamp(min=0)]
        if name in self.masks:
            self.masks[name] |= mask
        else:
            self.masks[name] = mask

    def indices(self) -> Iterable[tuple[str, Tensor]]:
        for name, mask in self.masks.items():
            if name not in self.shared:
                yield name, mask.nonzero().flatten()


@dataclass(frozen=True, slots=True)
class _Scope:
    """The sources of one decoder layer: linear layers' outputs and other parameters, each by name."""

    outputs: dict[str, Tensor]
    parameters: dict[str, Tensor]

    @classmethod
    def of(cls, record: FlowRecord, prefix: str) -> _Scope:
        return cls(
            {name: one for name, one in record.outputs.items() if name.startswith(prefix)},
            {name: one for name, one in record.parameters.items() if name.startswith(prefix)},
        )

    def owners(self, sink: Tensor, units: Tensor) -> dict[str, Owners | None]:
        """By name: where each source ends in the sink. Parameters are looked at along their first dimension."""
        found = dict(zip(self.outputs, owners(sink, units, list(self.outputs.values())), strict=True))
        return found | dict(
            zip(self.parameters, owners(sink, units, list(self.parameters.values()), dim=0), strict=True)
        )


def _cut_attention(cuts: Cuts, record: FlowRecord, layer: TracedLayer, division: Division) -> bool:
    """Whether the module could be divided."""
    call, cache = record.attention[layer.name], layer.expanded
    shares = divide_heads(layer.heads, cache.kv_heads, division.attention)
    share = shares[division.rank]
    scope = _Scope.of(record, f"{layer.name}.")
    output = _output_layer(record, scope, call, layer.heads)
    if output is None:
        return False
    name, columns = output
    heads, kv_heads = _mask(layer.heads, share.heads), _mask(cache.kv_heads, share.kv_heads)
    kept = _Kept()
    holders = sum(other.kv_heads == share.kv_heads for other in shares)
    for sink, keep in ((call.query, heads), (call.key, kv_heads), (call.value, kv_heads)):
        units = torch.arange(sink.shape[1])[:, None, None]
        for source, found in scope.owners(sink, units).items():
            kept.add(source, found, keep)
            if found is not None and keep is kv_heads:
                cuts.holders[source] = holders
    if call.sinks is not None:
        for source, found in scope.owners(call.sinks, torch.arange(call.sinks.numel()).view(call.sinks.shape)).items():
            kept.add(source, found, heads)
    for source, found in scope.owners(record.inputs[name], columns).items():
        kept.add(source, found, heads)
    indices = dict(kept.indices())
    # Queries have to come from layers that can be cut, or there is nothing to divide.
    if not any(source in scope.outputs for source in indices):
        return False
    _add(cuts, scope, indices)
    cuts.tensors[f"{name}.weight"] = Cut(1, heads[columns].nonzero().flatten())
    cuts.outputs[layer.name] = torch.tensor(list(share.heads))
    cuts.summed.add(name)
    cuts.heads[layer.name] = share
    return True


def _output_layer(record: FlowRecord, scope: _Scope, call: AttentionCall, heads: int) -> tuple[str, Tensor] | None:
    """The one linear layer that heads end in, with the head [in] that each of its columns comes from."""
    found: list[tuple[str, Tensor]] = []
    for name in scope.outputs:
        sink = record.inputs[name]
        (ends,) = owners(sink, torch.arange(sink.shape[-1]), [call.out])
        if ends is None:
            continue
        # Each element of each head has to end in a column of its own.
        if ends.units is None or len(ends.units.unique()) != sink.shape[-1] or bool((ends.units == NOTHING).any()):
            return None
        columns = torch.empty(sink.shape[-1], dtype=torch.long)
        columns[ends.units] = torch.arange(heads).repeat_interleave(sink.shape[-1] // heads)
        found.append((name, columns))
    return found[0] if len(found) == 1 else None


def _cut_mlps(cuts: Cuts, record: FlowRecord, traced: Traced, division: Division) -> None:
    """Divides each linear layer whose columns come one by one from the rows of other layers, and these."""
    used = _uses(record)
    taken = set(cuts.outputs) | cuts.summed
    for name, sink in record.inputs.items():
        sources = used.get(name, {})
        if name in taken or not sources or taken & set(sources):
            continue
        if any(found.units is None for found in sources.values()) or not any(s in record.outputs for s in sources):
            continue
        if any(source in other for source in sources for end, other in used.items() if end != name):
            continue
        width = sink.shape[-1]
        if width < division.size:
            continue
        own = divide(width, division.mlp, MULTIPLE)[division.rank]
        kept = _Kept()
        for source, found in sources.items():
            kept.add(source, found, _mask(width, own))
        _add(cuts, _Scope(record.outputs, record.parameters), dict(kept.indices()))
        cuts.tensors[f"{name}.weight"] = Cut(1, torch.tensor(list(own)))
        cuts.summed.add(name)


def _uses(record: FlowRecord) -> dict[str, dict[str, Owners]]:
    """By linear layer: the sources that its input is made of, where the residual stream is no part of it."""
    used: dict[str, dict[str, Owners]] = {}
    for name, sink in record.inputs.items():
        prefix = name.rpartition(".")[0]
        scope = _Scope.of(record, f"{prefix}." if prefix else "")
        foreign = [*record.opaque, *(call.out for call in record.attention.values())]
        if sink.requires_grad and all(one is None for one in _gradients(sink, foreign)):
            ends = scope.owners(sink, torch.arange(sink.shape[-1]))
            used[name] = {source: found for source, found in ends.items() if found is not None}
    return used


def _gradients(sink: Tensor, sources: list[Tensor]) -> tuple[Tensor | None, ...]:
    given = torch.autograd.grad(sink, sources, torch.ones_like(sink), retain_graph=True, allow_unused=True)
    return tuple(None if one is None or not bool((one != 0).any()) else one for one in given)


def _add(cuts: Cuts, scope: _Scope, indices: dict[str, Tensor]) -> None:
    for source, index in indices.items():
        if source in scope.outputs:
            cuts.outputs[source] = index
            cuts.tensors[f"{source}.weight"] = Cut(0, index)
            cuts.tensors[f"{source}.bias"] = Cut(0, index)
        else:
            cuts.tensors[source] = Cut(0, index)


def _mask(size: int, kept: range) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[kept.start : kept.stop] = True
    return mask
