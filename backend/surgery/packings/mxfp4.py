"""MXFP4 checkpoints, as gpt-oss is published: experts in blocks of 32 e2m1 numbers with one exponent of two.

OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 and 5.4.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# By the four bits: sign, two of exponent, one of mantissa.
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class Mxfp4Packing:
    """Parts of `gate_up_proj` are `gate_up_proj_blocks` and `gate_up_proj_scales`, and so on."""

    weight = "_proj"
    unused = ()
    parts = ("_proj_blocks", "_proj_scales")

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        """blocks [experts, columns, depth / 32, 16] -> the weight [experts, depth, columns], the model's own layout."""
        blocks, scales = parts["_proj_blocks"], parts["_proj_scales"]
        if blocks.dim() != 4 or blocks.shape[:-1] != scales.shape:
            raise ValueError(f"has blocks {list(blocks.shape)} and scales {list(scales.shape)}")
        values = torch.tensor(_VALUES, dtype=torch.bfloat16)
        made = []
        for block, scale in zip(blocks, scales, strict=True):  # expert by expert: indices take eight bytes each
            pairs = torch.stack((block & 15, block >> 4), dim=-1).flatten(-2)  # [columns, depth / 32, 32]
            # Times a power of two, which bfloat16 has exactly.
            exact = torch.ldexp(values[pairs.int()], scale.int().unsqueeze(-1) - 127)
            made.append(exact.flatten(1).T)
        return torch.stack(made)
