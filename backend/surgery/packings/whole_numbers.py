"""GPTQ and AWQ checkpoints: whole numbers of few bits, several to an int32, with a scale and a zero point a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_WORD = 32
# Which of eight columns the first, second, … four bits of an AWQ word hold.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = ("qweight", "qzeros", "scales")


def _numbers(words: Tensor, bits: int) -> Tensor:
    """words: [a, b] int32 -> [a, b, 32 / bits] the whole numbers in each, lowest bits first."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)


class GptqPacking:
    """Frantar et al., "GPTQ" (2022), as AutoGPTQ and GPTQModel store it: words run down the depth, which comes first.

    weight[column, i] = scale[g, column] (number[i, column] - zero[g, column]), g = g_idx[i].
    """

    weight = "weight"
    unused = ()
    parts = (*_PARTS, "g_idx")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self._bits, self._group = int(quantization["bits"]), int(quantization.get("group_size", -1))
        # The first format stores zero points less one.
        self._less = 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        scales = parts["scales"].float()  # [groups, columns]
        numbers = _numbers(parts["qweight"].T, self._bits).flatten(1).T  # [depth, columns]
        zeros = _numbers(parts["qzeros"], self._bits).flatten(1) + self._less
        depth, columns = numbers.shape
        if zeros.shape != scales.shape or scales.shape[1] != columns:
            raise ValueError(f"has scales {list(scales.shape)} and zero points {list(zeros.shape)}")
        group = parts.get("g_idx")
        if group is None:
            group = torch.arange(depth) // (self._group if self._group > 0 else depth)
        if group.shape[0] != depth or int(group.max()) >= scales.shape[0]:
            raise ValueError(f"has groups for {group.shape[0]} of {depth} inputs, and {scales.shape[0]} scales")
        group = group.long()
        return ((numbers - zeros[group]).float() * scales[group]).T


class AwqPacking:
    """Lin et al., "AWQ" (2023), version gemm: words run along the columns, in an order of their own.

    weight[column, i] = scale[i / group, column] (number[i, column] - zero[i / group, column])
    """

    weight = "weight"
    unused = ()
    parts = _PARTS

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self._group = int(quantization.get("group_size", quantization.get("q_group_size", 128)))

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        scales = parts["scales"].float()  # [groups, columns]
        numbers, zeros = self._columns(parts["qweight"]), self._columns(parts["qzeros"])
        depth = numbers.shape[0]
        group = torch.arange(depth) // (self._group if self._group > 0 else depth)
        if zeros.shape != scales.shape or scales.shape[1] != numbers.shape[1] or int(group[-1]) >= scales.shape[0]:
            raise ValueError(f"has scales {list(scales.shape)} and zero points {list(zeros.shape)}")
        return ((numbers - zeros[group]).float() * scales[group]).T

    @staticmethod
    def _columns(words: Tensor) -> Tensor:
        """words: [rows, columns / 8] -> [rows, columns]."""
        place = torch.tensor(_AWQ_ORDER).argsort()
        return _numbers(words, 4)[..., place].flatten(1)
