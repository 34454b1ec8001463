"""Processor kernels for what lies between a model's linears: norms, rotations, gated activations and additions.

In eager torch each would be three to six calls of a few microseconds, which is most of a small model's step. The item
functions are also jobs of a `stack`'s program.
"""

from __future__ import annotations

import numpy
import torch
from numba import cfunc
from numpy.typing import NDArray
from torch import Tensor

from backend.surgery.processor_rows import add_row, gelu_row, norm_row, rotate_row, silu_row
from quant.cpu.instructions import LANES
from quant.cpu.team import ITEM_SIGNATURE, Team, arguments_at

# Rows that a thread takes at once: fewer are not worth a second thread.
ITEM_ROWS = 16
# Tokens whose heads a thread rotates at once.
ITEM_TOKENS = 4
NORM_WORDS, GATED_WORDS, TURN_WORDS = 8, 6, 14
ACTIVATIONS = ("silu", "gelu_tanh")

_KINDS = (torch.bfloat16, torch.float32)


def serves(x: Tensor, size: int) -> bool:
    """Whether rows of `size` elements like those of `x` can be computed here."""
    return x.device.type == "cpu" and x.dtype in _KINDS and size % LANES == 0


@cfunc(ITEM_SIGNATURE, cache=True)
def norm_item(arguments, item, thread):
    """ITEM_ROWS rows of RMSNorm. Words: paired, x, weight, out, rows, vectors, constants, and what is added to x first.

    (The last is an address of as many rows, or 0; x is changed in place by it.)
    """
    words = arguments_at(arguments, NORM_WORDS)
    paired, x, weight, out, rows, vectors, constants, added = (
        words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7]
    )  # fmt: skip
    size = vectors * (32 if paired else 64)
    for row in range(item * ITEM_ROWS, min(rows, (item + 1) * ITEM_ROWS)):
        if added:
            add_row(paired, x + row * size, added + row * size, vectors)
        norm_row(paired, x + row * size, weight, out + row * size, vectors, constants)


@cfunc(ITEM_SIGNATURE, cache=True)
def add_item(arguments, item, thread):
    """ITEM_ROWS rows of x += added; the words are a norm's."""
    words = arguments_at(arguments, NORM_WORDS)
    paired, x, rows, vectors, added = words[0], words[1], words[4], words[5], words[7]
    size = vectors * (32 if paired else 64)
    for row in range(item * ITEM_ROWS, min(rows, (item + 1) * ITEM_ROWS)):
        add_row(paired, x + row * size, added + row * size, vectors)


@cfunc(ITEM_SIGNATURE, cache=True)
def gated_item(arguments, item, thread):
    """ITEM_ROWS rows of a gated activation. Words: silu, paired, x, out, rows, vectors."""
    words = arguments_at(arguments, GATED_WORDS)
    silu, paired, x, out, rows, vectors = words[0], words[1], words[2], words[3], words[4], words[5]
    size = vectors * (32 if paired else 64)
    for row in range(item * ITEM_ROWS, min(rows, (item + 1) * ITEM_ROWS)):
        gate, target = x + 2 * row * size, out + row * size
        if silu:
            silu_row(paired, gate, gate + size, target, vectors)
        else:
            gelu_row(paired, gate, gate + size, target, vectors)


@cfunc(ITEM_SIGNATURE, cache=True)
def turn_item(arguments, item, thread):
    """Norms, if there are any, and rotates the query and key heads of ITEM_TOKENS tokens, in place.

    Words: paired, product, stride, tokens, heads, kv_heads, vectors of half a head, cos, sin, stride of these, and the
    norms' weights and constants (query's, key's; 0 where there are none).
    """
    words = arguments_at(arguments, TURN_WORDS)
    paired, product, stride, tokens, heads, kv_heads, vectors = (
        words[0], words[1], words[2], words[3], words[4], words[5], words[6]
    )  # fmt: skip
    cos, sin, table_stride = words[7], words[8], words[9]
    size = 2 * vectors * (32 if paired else 64)
    for token in range(item * ITEM_TOKENS, min(tokens, (item + 1) * ITEM_TOKENS)):
        for head in range(heads + kv_heads):
            place = product + token * stride + head * size
            weight, constants = (words[10], words[11]) if head < heads else (words[12], words[13])
            if weight:
                norm_row(paired, place, weight, place, 2 * vectors, constants)
            rotate_row(paired, place, cos + token * table_stride, sin + token * table_stride, vectors)


class RowNorm:
    """RMSNorm over the last dimension with a fixed float32 weight and epsilon."""

    def __init__(self, weight: Tensor, epsilon: float, team: Team) -> None:
        """weight: [size], any dtype; a multiple of 16 elements."""
        self._weight = weight.float().contiguous()
        self._size = weight.shape[0]
        self._constants = torch.tensor([1.0 / self._size, epsilon], dtype=torch.float32)
        self._team = team
        self._words = numpy.zeros(NORM_WORDS, numpy.int64)
        self._words[[2, 5, 6]] = self._weight.data_ptr(), self._size // LANES, self._constants.data_ptr()
        self._arguments = self._words.ctypes.data

    @property
    def words(self) -> NDArray[numpy.int64]:
        """A norm job's words as far as they do not depend on a step: weight, vectors, constants."""
        return self._words

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., size] in bfloat16 or float32; the same shape and dtype, computed in float32."""
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty_like(x)
        rows = x.numel() // self._size
        words = self._words
        words[0], words[1] = x.dtype == torch.bfloat16, x.data_ptr()
        words[3], words[4] = out.data_ptr(), rows
        self._team.run(norm_item, self._arguments, -(-rows // ITEM_ROWS))
        return out


class GatedActivation:
    """activation(gate) * up over merged products; `activation` is one of ACTIVATIONS."""

    def __init__(self, activation: str, team: Team) -> None:
        self._team = team
        self._words = numpy.zeros(GATED_WORDS, numpy.int64)
        self._words[0] = activation == "silu"
        self._arguments = self._words.ctypes.data

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., 2 * size], gate then up, size a multiple of 16 -> [..., size].

        In bfloat16 or float32; computed in float32 and rounded once.
        """
        size = x.shape[-1] // 2
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty((*x.shape[:-1], size), dtype=x.dtype)
        rows = out.numel() // size
        self._words[1:] = x.dtype == torch.bfloat16, x.data_ptr(), out.data_ptr(), rows, size // LANES
        self._team.run(gated_item, self._arguments, -(-rows // ITEM_ROWS))
        return out
