"""Gate: what stands between an expert's two products, where the kernels compute it; as plain torch for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["swish", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Gate:
    """`activation(gate) * (up + offset)`, where the first product gives gate and up.

    Attributes:
        activation: "swish" is x * sigmoid(alpha * x); SiLU has an alpha of 1.
        interleaved: gate and up of a column are neighbours; otherwise all gates come before all ups.
        limit: gates are cut off above it, ups outside of [-limit, limit]; None for no limit.
    """

    activation: Activation
    interleaved: bool = False
    alpha: float = 1.0
    limit: float | None = None
    offset: float = 0.0

    def __call__(self, product: Tensor) -> Tensor:
        """The reference: [n, 2 * columns] -> [n, columns], in the product's type."""
        if self.interleaved:
            gate, up = product[..., ::2], product[..., 1::2]
        else:
            gate, up = product.chunk(2, dim=-1)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return self._activated(gate) * (up + self.offset)

    def _activated(self, gate: Tensor) -> Tensor:
        if self.activation == "swish":
            return gate * torch.sigmoid(self.alpha * gate)
        return functional.gelu(gate, approximate="none" if self.activation == "gelu" else "tanh")
