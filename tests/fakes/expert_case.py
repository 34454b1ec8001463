"""Random matrices, tokens and choices for the expert kernels, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.triton.expert_gate import Gate
from quant.triton.expert_reference import ExpertMatrices

SILU = Gate("swish")
GPT_OSS = Gate("swish", interleaved=True, alpha=1.702, limit=1.5, offset=1.0)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class ExpertCase:
    """`here` experts of `total` lie here, from `first` on; `gate` None for a single product before the activation."""

    tokens: int = 11
    active: int = 2
    total: int = 5
    first: int = 0
    here: int = 5
    hidden: int = 32
    inner: int = 48
    gate: Gate | None = SILU
    transposed: bool = False
    biased: bool = False
    dtype: torch.dtype = torch.float32

    def matrices(self, device: str = "cpu") -> ExpertMatrices:
        columns = self.inner * (1 if self.gate is None else 2)
        up, down = self._matrix(1, columns, self.hidden, device), self._matrix(2, self.hidden, self.inner, device)
        if not self.biased:
            return ExpertMatrices(up, down)
        return ExpertMatrices(up, down, self._random(3, (self.here, columns), device),
                              self._random(4, (self.here, self.hidden), device))  # fmt: skip

    def inputs(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """x, index and weights."""
        generator = torch.Generator().manual_seed(6)
        index = torch.rand(self.tokens, self.total, generator=generator).argsort(1)[:, : self.active]
        weights = torch.rand(self.tokens, self.active, generator=generator)
        return self._random(5, (self.tokens, self.hidden), device), index.to(device), weights.to(device)

    def _matrix(self, seed: int, rows: int, columns: int, device: str) -> Tensor:
        scale = columns**-0.5
        if self.transposed:
            return self._random(seed, (self.here, columns, rows), device, scale).transpose(1, 2)
        return self._random(seed, (self.here, rows, columns), device, scale)

    def _random(self, seed: int, shape: tuple[int, ...], device: str, scale: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(shape, generator=generator) * scale).to(self.dtype).to(device)
