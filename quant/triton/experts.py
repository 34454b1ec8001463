"""Fused experts: a mixture's products on a CUDA device, four launches a layer, nothing read back by the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.triton.expert_configuration import ExpertConfiguration, Tile, expert_configuration
from quant.triton.expert_gate import Gate
from quant.triton.expert_groups import Groups, group_pairs
from quant.triton.expert_products import down_kernel, sum_kernel, up_kernel
from quant.triton.expert_reference import ExpertMatrices

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
SUM_COLUMNS = 512


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """The experts of one layer that lie here, and how they are computed; called a step at a time.

    Attributes:
        matrices: [experts, ...], all of one type: float32, float16 or bfloat16.
        gate: a gate that the first product's kernel computes; None where `activate` does it on the product as stored.
        activate: [n, columns of the first product] -> [n, columns of the second].
        first, total: the number of the first expert that lies here, and how many there are anywhere.
        architecture: `sm_90`. interpreted: under Triton's interpreter, whose products know no bfloat16.
    """

    matrices: ExpertMatrices
    gate: Gate | None
    activate: Callable[[Tensor], Tensor]
    first: int
    total: int
    architecture: str
    interpreted: bool = False

    def __call__(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum [T, hidden] of those of each token's choices that lie here.

        x: [T, hidden], in the matrices' type; index, weights: [T, k]. Each pair's output is rounded to x's type, sums
        and what stands before the rounding are float32.
        """
        index = index.contiguous()
        outputs = torch.empty(index.numel(), x.shape[1], dtype=x.dtype, device=x.device)
        self._multiply(x, index, weights.contiguous(), outputs)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if x.shape[0]:
            grid = (x.shape[0], triton.cdiv(x.shape[1], SUM_COLUMNS))
            sum_kernel[grid](**self.sum_arguments(outputs, index, out))
        return out

    def pairs(self, x: Tensor, index: Tensor) -> Tensor:
        """Each pair's output, not weighted, [T * k, hidden] in x's type; zeros for what lies elsewhere."""
        index = index.contiguous()
        outputs = torch.zeros(index.numel(), x.shape[1], dtype=x.dtype, device=x.device)
        self._multiply(x, index, None, outputs)
        return outputs

    def configuration(self, pairs: int) -> ExpertConfiguration:
        return expert_configuration(self.architecture, self.matrices.up.element_size(), pairs / self.total)

    def _multiply(self, x: Tensor, index: Tensor, weights: Tensor | None, outputs: Tensor) -> None:
        if not index.numel():
            return
        used = self.configuration(index.numel())
        groups = group_pairs(index, self.first, self.matrices.up.shape[0], used.rows)
        if x.stride(-1) != 1:
            x = x.contiguous()
        inner = self._inner(x, index, groups, used)
        blocks = groups.blocks.shape[1]
        grid = (blocks, triton.cdiv(outputs.shape[1], used.down.columns))
        down_kernel[grid](**self.down_arguments(inner, groups, weights, outputs, used), **_options(used.down))

    def _inner(self, x: Tensor, index: Tensor, groups: Groups, used: ExpertConfiguration) -> Tensor:
        """[pairs, columns of the second product], in the order of groups; rows past the last are undefined."""
        columns = self.matrices.up.shape[1] // (1 if self.gate is None else 2)
        product = torch.empty(index.numel(), columns, dtype=x.dtype, device=x.device)
        grid = (groups.blocks.shape[1], triton.cdiv(columns, used.up.columns))
        arguments = self.up_arguments(x, index.shape[1], groups, product, used)
        up_kernel[grid](**arguments, **_options(used.up))
        return product if self.gate is not None else self.activate(product).contiguous()

    def up_arguments(
        self, x: Tensor, active: int, groups: Groups, inner: Tensor, used: ExpertConfiguration
    ) -> dict[str, Any]:
        """All arguments of `up_kernel` by name."""
        gate = self.gate
        layout = "plain" if gate is None else "pairs" if gate.interleaved else "halves"
        return {
            "x": x, "x_row": x.stride(0), "inner": inner, **_groups(groups),
            **_weight(self.matrices.up, self.matrices.up_bias),
            "alpha": 1.0 if gate is None else float(gate.alpha),
            "limit": None if gate is None or gate.limit is None else float(gate.limit),
            "offset": 0.0 if gate is None else float(gate.offset),
            "COLUMNS": inner.shape[1], "DEPTH": x.shape[1], "ACTIVE": active, "LAYOUT": layout,
            "ACTIVATION": "" if gate is None else gate.activation, **self._blocks(used.rows, used.up),
        }  # fmt: skip

    def down_arguments(
        self, inner: Tensor, groups: Groups, weights: Tensor | None, outputs: Tensor, used: ExpertConfiguration
    ) -> dict[str, Any]:
        """All arguments of `down_kernel` by name."""
        return {
            "inner": inner, "shares": weights, "outputs": outputs, **_groups(groups),
            **_weight(self.matrices.down, self.matrices.down_bias),
            "COLUMNS": outputs.shape[1], "DEPTH": inner.shape[1], **self._blocks(used.rows, used.down),
        }  # fmt: skip

    def sum_arguments(self, outputs: Tensor, index: Tensor, out: Tensor) -> dict[str, Any]:
        """All arguments of `sum_kernel` by name."""
        return {
            "outputs": outputs, "index": index, "out": out, "first": self.first,
            "EXPERTS": self.matrices.up.shape[0], "COLUMNS": out.shape[1], "ACTIVE": index.shape[1],
            "BLOCK_N": min(SUM_COLUMNS, triton.next_power_of_2(out.shape[1])),
        }  # fmt: skip

    def _blocks(self, rows: int, tile: Tile) -> dict[str, Any]:
        kind = torch.float32 if self.interpreted else self.matrices.up.dtype
        return {"TYPE": _TYPES[kind], "BLOCK_M": rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth}


def serves(dtype: torch.dtype, matrices: ExpertMatrices) -> bool:
    """Whether the kernels multiply these matrices with activations of `dtype`."""
    return dtype in _TYPES and matrices.up.dtype == matrices.down.dtype == dtype


def _groups(groups: Groups) -> dict[str, Any]:
    return {"order": groups.order, "blocks": groups.blocks, "most": groups.blocks.shape[1]}


def _weight(weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    """weight: [experts, columns, depth]; bias: [experts, columns], columns one beside the other."""
    expert, column, depth = weight.stride()
    return {
        "weight": weight, "weight_expert": expert, "weight_column": column, "weight_depth": depth,
        "bias": bias, "bias_expert": 0 if bias is None else bias.stride(0),
    }  # fmt: skip


def _options(tile: Tile) -> dict[str, Any]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}
