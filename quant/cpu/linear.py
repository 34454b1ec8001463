"""PackedLinear: a linear layer's weight in blocks of 16 columns, and its product for any number of rows.

The packed order (see `tiles`) serves one row at the speed of memory and many at the speed of the multiplier, so a
weight is kept once.
"""

from __future__ import annotations

import numpy
import torch
from numba import cfunc
from numpy.typing import NDArray
from torch import Tensor

from quant.cpu.instructions import LANES, VECTOR_BYTES
from quant.cpu.team import ITEM_SIGNATURE, Team, arguments_at
from quant.cpu.tiles import product_rows

TILE_BLOCKS = 4
# The column group that this thread will probably take next, counted from its present one.
NEXT_GROUP = 2
# Rows that a thread takes at once of a long product, so that they stay in its second-level cache.
PANEL_ROWS = 192
# A product's arguments: paired, left, left_stride, rows, steps, weight, start, out, out_stride, blocks, exact.
WORDS = 11

_wide = product_rows(TILE_BLOCKS, rounded=True)
_narrow = product_rows(1, rounded=True)
_wide_exact = product_rows(TILE_BLOCKS, rounded=False)
_narrow_exact = product_rows(1, rounded=False)


@cfunc(ITEM_SIGNATURE, cache=True)
def product_item(arguments, item, thread):
    """One column group of one row panel. All panels of a group follow each other: its weights come from memory once."""
    words = arguments_at(arguments, WORDS)
    paired, left, left_stride, rows, steps, weight, start, out, out_stride, blocks, exact = (
        words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7], words[8], words[9], words[10]
    )  # fmt: skip
    panels = (rows + PANEL_ROWS - 1) // PANEL_ROWS
    size = steps * VECTOR_BYTES
    width = 32 if paired and not exact else 64
    block, first = (item // panels) * TILE_BLOCKS, (item % panels) * PANEL_ROWS
    count = min(PANEL_ROWS, rows - first)
    place, target = left + first * left_stride, out + first * out_stride
    if block + TILE_BLOCKS <= blocks:
        columns, begin, ahead = weight + block * size, start + block * VECTOR_BYTES, NEXT_GROUP * TILE_BLOCKS * size
        target += block * width
        b1, b2, b3 = columns + size, columns + 2 * size, columns + 3 * size
        if exact:
            _wide_exact(
                count, paired, place, left_stride, steps, begin, target, out_stride, ahead, columns, b1, b2, b3
            )  # fmt: skip
        else:
            _wide(count, paired, place, left_stride, steps, begin, target, out_stride, ahead, columns, b1, b2, b3)
    else:
        for single in range(block, blocks):
            columns, begin, narrow = weight + single * size, start + single * VECTOR_BYTES, target + single * width
            if exact:
                _narrow_exact(count, paired, place, left_stride, steps, begin, narrow, out_stride, 0, columns)
            else:
                _narrow(count, paired, place, left_stride, steps, begin, narrow, out_stride, 0, columns)


def pack(weight: Tensor) -> Tensor:
    """The packed view of weight [columns, depth]: [blocks, steps, 16, pair], columns filled up with zeros."""
    columns, depth = weight.shape
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    filled = -columns % LANES
    if filled:
        weight = torch.cat([weight, weight.new_zeros(filled, depth)])
    blocks = weight.shape[0] // LANES
    return weight.view(blocks, LANES, depth // pair, pair).permute(0, 2, 1, 3)


class PackedLinear:
    """y = x W^T + b over a packed weight, in bfloat16 (float32 sums) or float32.

    Raises nothing of its own: `supports` says beforehand what it serves.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, team: Team, *, exact: bool = False) -> None:
        """weight: [columns, depth], given up to the packed copy; bias: [columns]; exact: results stay float32."""
        self.columns, self.depth = weight.shape
        self.packed = team.arena.place(pack(weight))
        blocks, steps = self.packed.shape[0], self.packed.shape[1]
        self.width = blocks * LANES
        self._start = torch.zeros(self.width)
        if bias is not None:
            self._start[: self.columns] = bias.float()
        self._element = weight.element_size()
        self._result = torch.float32 if exact else weight.dtype
        self.groups = -(-blocks // TILE_BLOCKS)
        self._team = team
        self._words = numpy.zeros(WORDS, numpy.int64)
        self._words[[0, 4, 5, 6, 8, 9, 10]] = (
            weight.dtype == torch.bfloat16, steps, self.packed.data_ptr(), self._start.data_ptr(),
            self.width * self._result.itemsize, blocks, exact,
        )  # fmt: skip
        self._arguments = self._words.ctypes.data

    @property
    def words(self) -> NDArray[numpy.int64]:
        """A product job's words (WORDS) as far as they do not depend on a step."""
        return self._words

    def items(self, rows: int) -> int:
        """How many items a product of that many rows has."""
        return self.groups * -(-rows // PANEL_ROWS)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        pair = 2 if weight.dtype == torch.bfloat16 else 1
        known = weight.dtype in (torch.bfloat16, torch.float32)
        return weight.device.type == "cpu" and known and weight.shape[1] % pair == 0

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., depth] in the weight's dtype -> [..., columns], in the same or, where exact, float32."""
        lines = x.reshape(-1, self.depth)
        rows = lines.shape[0]
        out = torch.empty((rows, self.width), dtype=self._result)
        if rows:
            words = self._words
            words[1], words[2] = lines.data_ptr(), lines.stride(0) * self._element
            words[3], words[7] = rows, out.data_ptr()
            self._team.run(product_item, self._arguments, self.items(rows))
        if self.width != self.columns:
            out = out[:, : self.columns]
        return out if x.dim() == 2 else out.view(*x.shape[:-1], self.columns)

    def rows(self, index: Tensor) -> Tensor:
        """The weight's rows at index [T]: [T, depth]. What an embedding tied to this linear looks up."""
        lines = self.packed[index // LANES, :, index % LANES]
        return lines.reshape(index.shape[0], self.depth)

    @property
    def bytes(self) -> int:
        return self.packed.nbytes + self._start.nbytes

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """None to move: they lie in the team's arena, whose addresses the kernel keeps."""
        return ()
