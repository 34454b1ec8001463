"""Format "int8": each column's weights as whole numbers up to 127 with one scale, multiplied as whole numbers.

Inputs are rounded as well, but to two digits of base 254 and not to one: a digit alone would lose what stands beside
an outlier, and splitting outliers off, as LLM.int8() does (Dettmers et al., 2022), makes a sequence's sums depend on
the other sequences of its batch and asks the host. Sums of whole numbers are exact, in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quant.weight_sizes import DEPTH_MULTIPLE, PRODUCT_ROWS
from quant.weights.bits_and_bytes import bits_and_bytes
from quant.weights.model import ModelFormat
from quant.weights.rows import SMALLEST, fill_depth, quantize_rows

if TYPE_CHECKING:
    from quant.cpu.team import Team
    from quant.weight_format import Linear

_LARGEST = 127.0
# A digit reaches half a step to both sides of the one before it.
_BASE = 2 * _LARGEST


def round_weight(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows: [n, depth] float32 -> whole numbers [n, depth] int8, and scales [n] float32."""
    scale = rows.abs().amax(1).clamp_min(SMALLEST) / _LARGEST
    return (rows / scale[:, None]).round_().to(torch.int8), scale


def round_input(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: [n, depth] -> both digits [2, n, depth] int8, and the scale [n, 1] of the first: x = scale (d0 + d1 / 254)."""
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / _LARGEST
    # What is not finite has its scale to tell so; a digit must be some number.
    exact = (x / scale).nan_to_num_(0.0, _LARGEST, -_LARGEST)
    first = exact.round()
    digits = torch.stack((first, (exact.sub_(first)).mul_(_BASE).round_()))
    return digits.to(torch.int8), scale


class Int8Linear:
    """y = x W^T + b over an int8 weight; results in x's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._library: Any = bits_and_bytes()
        self._depth, self._dtype, self._bias = weight.shape[1], weight.dtype, bias
        self._levels, self._scale = quantize_rows(weight, DEPTH_MULTIPLE, round_weight)

    @property
    def bytes(self) -> int:
        return self._levels.nbytes + self._scale.nbytes + (0 if self._bias is None else self._bias.nbytes)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self._levels, self._scale) if self._bias is None else (self._levels, self._scale, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        lines = x.reshape(-1, self._depth)
        out = torch.empty(lines.shape[0], self._levels.shape[0], dtype=x.dtype, device=x.device)
        for some, result in zip(lines.split(PRODUCT_ROWS), out.split(PRODUCT_ROWS), strict=True):
            if some.shape[0]:
                result.copy_(self._product(fill_depth(some, DEPTH_MULTIPLE)))
        return out.view(*x.shape[:-1], out.shape[1])

    def _product(self, x: Tensor) -> Tensor:
        """x: [n, depth], filled up -> [n, columns] float32."""
        digits, scale = round_input(x)
        sums = self._library.int8_linear_matmul(digits.flatten(0, 1), self._levels).unflatten(0, (2, -1))
        y = (sums[1].float().div_(_BASE)).add_(sums[0]).mul_(scale).mul_(self._scale)
        return y if self._bias is None else y.add_(self._bias)

    def rows(self, index: Tensor) -> Tensor:
        levels = self._levels[index, : self._depth]
        return (levels.float() * self._scale[index, None]).to(self._dtype)


class Int8Format:
    """Format "int8"."""

    name = "int8"

    def linear(self, weight: Tensor, bias: Tensor | None, team: Team | None, *, exact: bool = False) -> Linear:
        """An output layer stays as it is: the answer is chosen from its results, which no later layer evens out."""
        return ModelFormat().linear(weight, bias, team, exact=True) if exact else Int8Linear(weight, bias)
