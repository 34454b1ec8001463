"""FP8 checkpoints: e4m3 weights with one scale for a tensor, a channel, or a block, as DeepSeek-V3's have.

The scale is what a stored number is multiplied with, also where it is called `weight_scale_inv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WEIGHT = "weight"
_UNUSED = ("activation_scale", "input_scale", "k_scale", "v_scale", "q_scale")


class Fp8Packing:
    """Methods "fp8" and "compressed-tensors", which name the scale differently."""

    weight = WEIGHT
    unused = _UNUSED

    def __init__(self, scale: str, block: tuple[int, int] | None) -> None:
        """scale: what the scale's name ends with; block: rows and columns of a block, if scales belong to blocks."""
        self._scale, self._block = scale, block

    @property
    def parts(self) -> tuple[str, ...]:
        return (self._scale, WEIGHT)

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        weight, scale = parts[WEIGHT].float(), _factors(parts[self._scale])
        if scale.numel() == 1:
            return weight * scale.reshape(())
        if scale.dim() == weight.dim() - 1:
            scale = scale.unsqueeze(-1)
        if scale.dim() != weight.dim():
            raise ValueError(f"has scales {list(scale.shape)} for a weight {list(weight.shape)}")
        return weight * self._spread(scale, weight)

    def _spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Each block's scale over its block; blocks at the ends may be smaller."""
        for axis, size in ((-2, 0), (-1, 1)):
            count = weight.shape[axis]
            if scale.shape[axis] in (1, count):
                continue
            if self._block is None or scale.shape[axis] != -(-count // self._block[size]):
                raise ValueError(f"has scales {list(scale.shape)} for a weight {list(weight.shape)}")
            scale = scale.repeat_interleave(self._block[size], dim=axis).narrow(axis, 0, count)
        return scale


def _factors(scale: Tensor) -> Tensor:
    """Scales as float32; where they are bytes, these are exponents of two (e8m0)."""
    return (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()


def fine_grained(quantization: Mapping[str, Any]) -> Fp8Packing:
    block = quantization.get("weight_block_size")
    return Fp8Packing("weight_scale_inv", (block[0], block[1]) if block else None)


def compressed(quantization: Mapping[str, Any]) -> Fp8Packing:
    groups = (quantization.get("config_groups") or {}).values()
    blocks = [group["weights"].get("block_structure") for group in groups]
    block = next((one for one in blocks if one), None)
    return Fp8Packing("weight_scale", (block[0], block[1]) if block else None)
