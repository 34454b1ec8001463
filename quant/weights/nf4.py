"""Format "nf4": blocks of 64 weights as 4-bit quantiles of the normal distribution, with a scale a block.

Dettmers et al., "QLoRA" (2023), section 3. Depths are filled up to whole blocks, so that each row has its own, and a
rank's share is stored as the whole weight's rows would be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quant.weight_sizes import NF4_BLOCK
from quant.weights.bits_and_bytes import bits_and_bytes
from quant.weights.model import ModelFormat
from quant.weights.rows import fill_depth, quantize_rows

if TYPE_CHECKING:
    from quant.cpu.team import Team
    from quant.weight_format import Linear

# Columns that lie together in the order of the processor's product; the first half in the low, the second in the high
# four bits.
_PACKED_COLUMNS = 32
_HALF = _PACKED_COLUMNS // 2


class Nf4Linear:
    """y = x W^T + b over an nf4 weight; results in x's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        library: Any = bits_and_bytes()
        self._depth, self._dtype, self._bias = weight.shape[1], weight.dtype, bias
        shape = torch.Size((weight.shape[0], -(-self._depth // NF4_BLOCK) * NF4_BLOCK))

        def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
            codes, state = library.quantize_4bit(rows, blocksize=NF4_BLOCK, quant_type="nf4")
            return codes.view(rows.shape[0], -1), state.absmax.view(rows.shape[0], -1)

        codes, scales = quantize_rows(weight, NF4_BLOCK, quantize)
        code = library.get_4bit_type("nf4", device=weight.device)
        self._state: Any = library.QuantState(scales.flatten(), shape, code, NF4_BLOCK, "nf4", weight.dtype)
        self._codes = codes  # [columns, depth / 2], two to a byte, the first in the high bits
        self._packed = False
        if weight.device.type == "cpu":
            self._suit_processor(library)

    def _suit_processor(self, library: Any) -> None:
        """Puts the weight in the order of the processor's product, where it has one. Scales are bfloat16 either way."""
        if _packs(library, self._state.shape[0], self._dtype):
            self._codes, self._state = library._convert_weight_packed_for_cpu(self._codes, self._state, _PACKED_COLUMNS)
            self._packed = True
        else:
            self._state.absmax = self._state.absmax.bfloat16()

    @property
    def bytes(self) -> int:
        bias = 0 if self._bias is None else self._bias.nbytes
        return self._codes.nbytes + self._state.absmax.nbytes + bias

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        stored = (self._codes, self._state.absmax)
        return stored if self._bias is None else (*stored, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        lines = fill_depth(x.reshape(-1, self._depth), NF4_BLOCK).contiguous()
        columns = self._state.shape[0]
        if not lines.shape[0]:
            return x.new_empty(*x.shape[:-1], columns)
        out = self._product(lines) if self._packed or x.device.type != "cpu" else self._plain(lines)
        return out.view(*x.shape[:-1], columns)

    def _product(self, x: Tensor) -> Tensor:
        import bitsandbytes

        return bitsandbytes.matmul_4bit(  # pyright: ignore[reportPrivateImportUsage] - how its README has it
            x, self._codes, self._state, bias=self._bias
        )

    def _plain(self, x: Tensor) -> Tensor:
        weight = torch.ops.bitsandbytes.dequantize_4bit(
            self._codes.view(-1, 1), self._state.absmax, NF4_BLOCK, "nf4", self._state.shape, x.dtype
        )
        return torch.nn.functional.linear(x, weight, self._bias)

    def rows(self, index: Tensor) -> Tensor:
        if self._packed:
            codes, scales = self._packed_codes(index), self._state.absmax.T[index]
        else:
            bytes_ = self._codes[index]
            codes = torch.stack((bytes_ >> 4, bytes_ & 15), dim=-1).flatten(1)
            scales = self._state.absmax.view(self._codes.shape[0], -1)[index]
        values = self._state.code[codes.long()].unflatten(1, (-1, NF4_BLOCK)) * scales[..., None].float()
        return values.flatten(1)[:, : self._depth].to(self._dtype)

    def _packed_codes(self, index: Tensor) -> Tensor:
        """Codes [T, depth] of rows in the processor's order: [columns / 32, depth / 2, 16 columns, 2], two a byte."""
        blocks = self._codes.view(-1, self._codes.shape[1], _HALF, 2)
        lane = index % _PACKED_COLUMNS
        bytes_ = blocks[index // _PACKED_COLUMNS, :, lane % _HALF].flatten(1)
        return torch.where((lane >= _HALF)[:, None], bytes_ >> 4, bytes_ & 15)


def _packs(library: Any, columns: int, dtype: torch.dtype) -> bool:
    """Whether bitsandbytes has a product over packed weights here: it computes in bfloat16."""
    return bool(library.has_avx512bf16()) and dtype == torch.bfloat16 and columns % _PACKED_COLUMNS == 0


class Nf4Format:
    """Format "nf4"."""

    name = "nf4"

    def linear(self, weight: Tensor, bias: Tensor | None, team: Team | None, *, exact: bool = False) -> Linear:
        """An output layer stays as it is: the answer is chosen from its results, which no later layer evens out."""
        return ModelFormat().linear(weight, bias, team, exact=True) if exact else Nf4Linear(weight, bias)
