"""StackedLayer: one decoder layer taken apart for a FusedStack, and how layers that it can compute are recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery.attention import ServedAttention
from backend.surgery.echo_context import EchoContext
from backend.surgery.glu import GatedMlp
from backend.surgery.norm import ServedRMSNorm
from backend.surgery.processor_kernels import RowNorm
from quant.cpu.linear import PackedLinear

_TOKENS = 3
Finish = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StackedLayer:
    """The kernels of one layer; `norms` are attention's and the MLP's, `head_norms` query's and key's or none.

    `sums` are what ranks do to the products of `output` and `down`, where a model is divided.
    """

    module: nn.Module
    slot: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    scaling: float
    softcap: float
    silu: bool
    norms: tuple[RowNorm, RowNorm]
    head_norms: tuple[RowNorm, ...]
    qkv: PackedLinear
    output: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear
    sums: tuple[Finish | None, Finish | None]

    def linears(self, **jobs: int) -> Iterator[tuple[int, PackedLinear]]:
        """The four products, each with the number that `jobs` gives its name in capitals."""
        return ((job, getattr(self, name.lower())) for name, job in jobs.items())

    def widths(self) -> dict[str, int]:
        """Elements a row of each buffer between the jobs."""
        return {
            "x": self.output.columns,
            "normed": self.output.columns,
            "product": self.qkv.columns,
            "attended": self.heads * self.head_size,
            "back": self.output.columns,
            "gate_up": self.gate_up.columns,
            "gated": self.width,
        }

    @property
    def head_norm_words(self) -> tuple[int, int, int, int]:
        """Weight and constants of the query's norm and of the key's; 0 where there are none."""
        if not self.head_norms:
            return (0, 0, 0, 0)
        query, key = self.head_norms
        return int(query.words[2]), int(query.words[6]), int(key.words[2]), int(key.words[6])


def stacked_layer(module: nn.Module) -> StackedLayer | None:
    """The layer taken apart, if a stack computes the same as it; None for any other."""
    children = list(module.children())
    attention = next((child for child in children if isinstance(child, ServedAttention)), None)
    mlp = next((child for child in children if isinstance(child, GatedMlp)), None)
    norms = [child for child in children if isinstance(child, ServedRMSNorm)]
    if attention is None or mlp is None or len(norms) != 2 or len(children) != 4:
        return None
    linears: list[Any] = [part.kernel for part in (attention.qkv, attention.output, mlp.gate_up, mlp.down)]
    row_norms: list[Any] = [norm.kernel for norm in (*norms, *attention.head_norms)]
    activation = getattr(mlp.step.kernel, "activation", None)
    width = mlp.down.in_features
    plain = (
        all(isinstance(linear, PackedLinear) and linear.width == linear.columns for linear in linears)
        and all(isinstance(norm, RowNorm) for norm in row_norms)
        and activation is not None
        and attention.head_size % 32 == 0
        and width % 16 == 0
        and attention.qkv.finish is None
        and mlp.gate_up.finish is None
    )
    if not plain or not _is_residual(module, attention, mlp, norms):
        return None
    return StackedLayer(
        module=module,
        slot=attention.slot,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_size=attention.head_size,
        width=width,
        scaling=attention.settings.scaling,
        softcap=attention.settings.softcap or 0.0,
        silu=activation == "silu",
        norms=(row_norms[0], row_norms[1]),
        head_norms=tuple(row_norms[2:]),
        qkv=linears[0],
        output=linears[1],
        gate_up=linears[2],
        down=linears[3],
        sums=(attention.output.finish, mlp.down.finish),
    )


def _is_residual(module: nn.Module, attention: ServedAttention, mlp: GatedMlp, norms: list[ServedRMSNorm]) -> bool:
    """Whether the layer's own forward is the two plain residual halves, found by computing both, bit for bit."""
    generator = torch.Generator().manual_seed(17)
    dtype = torch.bfloat16 if linear_dtype(attention) == torch.bfloat16 else torch.float32
    x = torch.randn(1, _TOKENS, norms[0].weight.shape[0], generator=generator).to(dtype)
    angles = torch.rand(1, _TOKENS, attention.head_size // 2, generator=generator).repeat(1, 1, 2)
    given: dict[str, Any] = {
        "position_embeddings": (angles.cos().to(dtype), angles.sin().to(dtype)),
        "context": EchoContext(),
    }
    try:
        theirs = module(x, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False, **given)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError):
        return False
    halfway = x + attention(hidden_states=norms[0](x), **given)[0]
    ours = halfway + mlp(norms[1](halfway))
    return isinstance(theirs, Tensor) and torch.equal(theirs, ours)


def linear_dtype(attention: ServedAttention) -> torch.dtype:
    """The dtype that the layer computes in."""
    kernel: Any = attention.qkv.kernel
    return kernel.packed.dtype
