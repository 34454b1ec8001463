"""What the quantized weight formats do alike: rounding a weight some rows at a time, and filling up its depth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Elements that are widened to float32 at once, so that rounding a large weight takes no second one beside it.
_AT_ONCE = 1 << 24
# Below any weight's largest element that matters, and above what makes its reciprocal infinite.
SMALLEST = 1e-30

Quantized = tuple[Tensor, ...]


def quantize_rows(weight: Tensor, multiple: int, quantize: Callable[[Tensor], Quantized]) -> Quantized:
    """What `quantize` makes of the rows of weight [columns, depth], put together again along their first dimension.

    It is given some rows at a time, in float32, their depth filled up with zeros to a multiple.
    """
    step = max(1, _AT_ONCE // weight.shape[1])
    made = [quantize(fill_depth(rows.float(), multiple).contiguous()) for rows in weight.split(step)]
    return tuple(torch.cat(parts) for parts in zip(*made, strict=True))


def fill_depth(x: Tensor, multiple: int) -> Tensor:
    """x: [..., depth], its last dimension filled up with zeros to a multiple."""
    missing = -x.shape[-1] % multiple
    return functional.pad(x, (0, missing)) if missing else x
