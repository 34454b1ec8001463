"""Format "fp8": e4m3 weights with a scale a column, for GPUs that multiply them; inputs get a scale a row.

Which GPUs do is the planner's to say. On a processor the same numbers are multiplied in float32, as the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.weight_sizes import DEPTH_MULTIPLE, FP8_PRODUCT_ROWS
from quant.weights.model import ModelFormat
from quant.weights.rows import SMALLEST, fill_depth, quantize_rows

if TYPE_CHECKING:
    from quant.cpu.team import Team
    from quant.weight_format import Linear

_TYPE = torch.float8_e4m3fn
_LARGEST = 448.0


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows: [n, depth] -> e4m3 [n, depth], and scales [n, 1] float32."""
    rows = rows.float()
    scale = rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / _LARGEST
    return (rows / scale).clamp_(-_LARGEST, _LARGEST).to(_TYPE), scale


class Fp8Linear:
    """y = x W^T + b over an e4m3 weight; results in x's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._columns, self._depth = weight.shape
        self._dtype, self._bias = weight.dtype, bias
        filled = weight
        if missing := -self._columns % DEPTH_MULTIPLE:
            filled = torch.cat([weight, weight.new_zeros(missing, self._depth)])
        self._levels, scale = quantize_rows(filled, DEPTH_MULTIPLE, round_rows)
        self._scale = scale.flatten()

    @property
    def bytes(self) -> int:
        return self._levels.nbytes + self._scale.nbytes + (0 if self._bias is None else self._bias.nbytes)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self._levels, self._scale) if self._bias is None else (self._levels, self._scale, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        lines = x.reshape(-1, self._depth)
        out = torch.empty(lines.shape[0], self._columns, dtype=x.dtype, device=x.device)
        for some, result in zip(lines.split(FP8_PRODUCT_ROWS), out.split(FP8_PRODUCT_ROWS), strict=True):
            if some.shape[0]:
                result.copy_(self._product(fill_depth(some, DEPTH_MULTIPLE))[:, : self._columns])
        return (out if self._bias is None else out.add_(self._bias)).view(*x.shape[:-1], self._columns)

    def _product(self, x: Tensor) -> Tensor:
        """x: [n, depth], filled up -> [n, columns filled up]."""
        levels, scale = round_rows(x)
        if x.device.type == "cpu":
            return (levels.float() @ self._levels.float().T) * scale * self._scale
        return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage] - torch has no other name for it
            levels, self._levels.T, scale, self._scale[None], out_dtype=torch.bfloat16
        )

    def rows(self, index: Tensor) -> Tensor:
        levels = self._levels[index].float()
        return (levels * self._scale[index, None])[:, : self._depth].to(self._dtype)


class Fp8Format:
    """Format "fp8"."""

    name = "fp8"

    def linear(self, weight: Tensor, bias: Tensor | None, team: Team | None, *, exact: bool = False) -> Linear:
        """An output layer stays as it is: the answer is chosen from its results, which no later layer evens out."""
        return ModelFormat().linear(weight, bias, team, exact=True) if exact else Fp8Linear(weight, bias)
