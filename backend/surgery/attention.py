"""The attention module that most families share: one merged projection, rotation, the context, the output projection.

A family's own module is replaced only when it hands the context the same tensors and answers the same as ours does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery.context import AttentionContext
from backend.surgery.echo_context import EchoContext
from backend.surgery.linears import ServedLinear, merge, mergeable, serve
from backend.surgery.norm import ServedRMSNorm, rms_norm
from backend.surgery.trace import TracedLayer

_HIDDEN, _TOKENS = 8, 3
RotaryKernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class RotaryStep(nn.Module):
    """Rotates heads [T, N, D] by cos and sin [T, D], first half against second; `kernel` may be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: RotaryKernel = self.rotate

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)

    def forward(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.kernel(heads, cos, sin)


class ServedAttention(nn.Module):
    """Attention over merged projections, with a norm for each head of query and of key where the family has them."""

    def __init__(
        self,
        layer: TracedLayer,
        slot: int,
        projections: tuple[ServedLinear, ServedLinear],
        norms: list[tuple[str, ServedRMSNorm]],
        settings: _Settings,
    ) -> None:
        """projections: the merged query, key and value one, and the output one. norms: query's and key's, or none."""
        super().__init__()
        self.heads, self.kv_heads, self.head_size = layer.heads, layer.cache.kv_heads, layer.cache.key_size
        self.slot, self.settings = slot, settings
        self.qkv, self.output = projections
        for name, norm in norms:  # under the names that checkpoints give them
            self.add_module(name, norm)
        self.head_norms = tuple(norm for _, norm in norms)
        self.rotary = RotaryStep()

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        context: AttentionContext,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states: [1, T, hidden] -> the same shape, and no weights."""
        cos, sin = (table[0] for table in position_embeddings)
        product = self.qkv(hidden_states)[0].unflatten(-1, (-1, self.head_size))  # [T, heads + 2 * kv_heads, D]
        rotated = self.heads + self.kv_heads
        value = product[:, rotated:]
        if self.head_norms:
            query_norm, key_norm = self.head_norms
            query = self.rotary(query_norm(product[:, : self.heads]), cos, sin)
            key = self.rotary(key_norm(product[:, self.heads : rotated]), cos, sin)
        else:
            both = self.rotary(product[:, :rotated], cos, sin)
            query, key = both[:, : self.heads], both[:, self.heads :]
        settings = self.settings
        out = context.attend(self.slot, query, key, value, scaling=settings.scaling, softcap=settings.softcap)
        return self.output(out.flatten(1).unsqueeze(0)), None


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a layer asks of every attention call."""

    scaling: float
    softcap: float | None


def served_attention(
    module: nn.Module, layer: TracedLayer, slot: int, projections: tuple[str, ...]
) -> ServedAttention | None:
    """The replacement for one attention module, else None. `projections`: its linears over one input, in call order."""
    path = layer.name
    linears = {f"{path}.{name}": child for name, child in module.named_children() if type(child) is nn.Linear}
    last = [name for name in linears if name not in projections]
    if len(linears) != 4 or len(projections) != 3 or len(last) != 1 or module._parameters:
        return None
    inputs = [linears[name] for name in projections if name in linears]
    if len(inputs) != 3 or not mergeable(inputs) or layer.cache.key_size != layer.cache.value_size:
        return None
    norms = _norms(module, layer.cache.key_size)
    if norms is None:
        return None
    settings = _settings(module, layer, slot, [*projections, *last], norms)
    if settings is None:
        return None
    merged = merge(inputs, list(projections))
    return ServedAttention(layer, slot, (merged, serve(linears[last[0]], last[0])), norms, settings)


def _norms(module: nn.Module, head_size: int) -> list[tuple[str, ServedRMSNorm]] | None:
    """The module's two head norms, or none; None where it holds anything else that has parameters."""
    found = []
    for name, child in module.named_children():
        if type(child) is nn.Linear or not any(True for _ in child.parameters()):
            continue
        norm = rms_norm(child)
        if norm is None or norm.weight.shape[0] != head_size:
            return None
        found.append((name, norm))
    return found if len(found) in (0, 2) else None


@torch.no_grad()
def _settings(
    module: nn.Module, layer: TracedLayer, slot: int, names: list[str], norms: list[tuple[str, ServedRMSNorm]]
) -> _Settings | None:
    """What the module asks of attention, if with small random layers in place of its own it does what ours does."""
    generator = torch.Generator().manual_seed(13)
    probe = copy.copy(module)
    probe._modules = dict(module._modules)
    probe.slot = slot  # pyright: ignore[reportArgumentType]
    size, heads, kv_heads = layer.cache.key_size, layer.heads, layer.cache.kv_heads

    def tiny(name: str, rows: int, columns: int) -> nn.Linear:
        short = name.rpartition(".")[2]
        linear = nn.Linear(columns, rows, bias=module.get_submodule(short).bias is not None, dtype=torch.float32)
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        probe._modules[short] = linear
        return linear

    rows = (heads * size, kv_heads * size, kv_heads * size)
    inputs = [tiny(name, count, _HIDDEN) for name, count in zip(names[:3], rows, strict=True)]
    output = serve(tiny(names[3], _HIDDEN, heads * size), names[3])
    merged = merge(inputs, names[:3])
    merged.weight = nn.Parameter(torch.cat([linear.weight for linear in inputs]), requires_grad=False)
    merged.bias = None if inputs[0].bias is None else nn.Parameter(torch.cat([linear.bias for linear in inputs]))
    own: list[tuple[str, ServedRMSNorm]] = []
    for name, norm in norms:
        weight = nn.Parameter(torch.randn(norm.weight.shape, generator=generator), requires_grad=False)
        child = copy.copy(module.get_submodule(name))
        child._parameters = {"weight": weight}
        probe._modules[name] = child
        own.append((name, ServedRMSNorm(weight, norm.epsilon, norm.offset)))
    ours = ServedAttention(layer, slot, (merged, output), own, _Settings(1.0, None))
    angles = torch.rand(1, _TOKENS, size // 2, generator=generator).repeat(1, 1, 2)
    tables = (angles.cos(), angles.sin())
    settings = None
    for scale in (1.0, 1000.0):  # large values show clamps, far positions show scalings by position
        x = torch.randn(1, _TOKENS, _HIDDEN, generator=generator) * scale
        settings = _compare(probe, ours, x, tables)
        if settings is None:
            return None
    return settings


def _compare(probe: nn.Module, ours: ServedAttention, x: Tensor, tables: tuple[Tensor, Tensor]) -> _Settings | None:
    theirs, mine = EchoContext(), EchoContext()
    positions = torch.arange(x.shape[1])[None] * 100_000
    try:
        given = probe(
            hidden_states=x,
            position_embeddings=tables,
            attention_mask=None,
            position_ids=positions,
            past_key_values=None,
            context=theirs,
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return None
    expected, _ = ours(x, position_embeddings=tables, context=mine)
    if not isinstance(given, tuple) or len(given) != 2 or theirs.sinks is not None or len(theirs.tensors) != 3:
        return None
    pairs = [(given[0], expected), *zip(theirs.tensors, mine.tensors, strict=True)]
    same = all(one.shape == other.shape and torch.allclose(one, other, 1e-4, 1e-4) for one, other in pairs)
    if not same or theirs.scaling is None:
        return None
    return _Settings(theirs.scaling, theirs.softcap)
