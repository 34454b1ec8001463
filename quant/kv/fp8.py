"""FP8 e4m3 with a scale per token and head: Micikevicius et al., "FP8 Formats for Deep Learning" (2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.kv.scale import scale_of

LARGEST = 448.0


class Fp8Codec:
    """Rounds to nearest even; the scale puts the row's largest element at 448 or a little below."""

    def dtype(self, model: torch.dtype) -> torch.dtype:
        return torch.float8_e4m3fn

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        scales = scale_of(x, LARGEST)
        return (x.float() / scales.float().unsqueeze(-1)).to(torch.float8_e4m3fn), scales

    def decode(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        if scales is None:
            raise ValueError("fp8 keeps a scale for each token and head, and none was given")
        return stored.float() * scales.float().unsqueeze(-1)
