"""The scale of a token and head: the smallest bfloat16 by which its largest element comes within a format's range.

Rounding up, never to nearest: an element must not leave the range. A bfloat16 has float32's range of exponents, so that
neither tiny nor huge rows need a case of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scale_of(x: Tensor, largest: float) -> Tensor:
    """x [..., size] -> bfloat16 [...], at least max |x| / largest; 1 for a row of zeros.

    A row with a NaN or infinity gets a NaN or infinite scale, which makes the whole row, as decoded, not finite.
    """
    peak = x.float().abs().amax(dim=-1)
    # A tensor, because CUDA multiplies by the reciprocal of a number, which rounds differently.
    peak = peak / torch.full_like(peak, largest)
    rounded_up = ((peak.view(torch.int32) + 0xFFFF) >> 16 << 16).view(torch.float32)
    kept = torch.where(peak.isfinite(), rounded_up, peak)
    return torch.where(kept == 0, 1.0, kept).to(torch.bfloat16)
