"""INT8, symmetric, with a scale per token and head."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.kv.scale import scale_of

LARGEST = 127.0


class Int8Codec:
    """Rounds to nearest even; the scale puts the row's largest element at 127 or a little below."""

    def dtype(self, model: torch.dtype) -> torch.dtype:
        return torch.int8

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        scales = scale_of(x, LARGEST)
        levels = (x.float() / scales.float().unsqueeze(-1)).round()
        # What is not finite has its scale to tell so; a level must be some number.
        return levels.nan_to_num(0.0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST).to(torch.int8), scales

    def decode(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        if scales is None:
            raise ValueError("int8 keeps a scale for each token and head, and none was given")
        return stored.float() * scales.float().unsqueeze(-1)
