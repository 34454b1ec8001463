"""Processor kernels for what lies between a model's linears: RMSNorm and gated activations, row by row.

In eager torch each would be three to six calls of a few microseconds, which is most of a small model's step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from llvmlite import ir
from numba import cfunc
from torch import Tensor

from quant.cpu.arithmetic import (
    call_named,
    exponential,
    hyperbolic_tangent,
    load_elements,
    store_elements,
    total,
)  # fmt: skip
from quant.cpu.instructions import (
    FLOAT,
    FLOATS,
    LANES,
    Totals,
    Value,
    as_intrinsic,
    both_kinds,
    broadcast,
    constant,
    counted_loop,
    fused_multiply_add,
    integer,
    load,
)  # fmt: skip
from quant.cpu.team import ITEM_SIGNATURE, Team, arguments_at

# Rows that a thread takes at once: fewer are not worth a second thread.
ITEM_ROWS = 16
NORM_WORDS, GATED_WORDS = 7, 6

_KINDS = (torch.bfloat16, torch.float32)


def serves(x: Tensor, size: int) -> bool:
    """Whether rows of `size` elements like those of `x` can be computed here."""
    return x.device.type == "cpu" and x.dtype in _KINDS and size % LANES == 0


def _norm_row() -> Any:
    """Numba intrinsic `(paired, x, weight, out, vectors, constants)`: one row of RMSNorm.

    weight: float32; constants: float32 [2], 1 / size and epsilon. (Zhang and Sennrich, "Root Mean Square Layer
    Normalization", 2019.)
    """

    def write(function: ir.Function) -> None:
        paired, x, weight, out, vectors, constants = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            def square(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                lanes = load_elements(builder, x, index, halves=halves)
                return [[fused_multiply_add(builder, lanes, lanes, totals[0][0])]]

            def scale(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                factors = load_elements(builder, weight, index, halves=False)
                lanes = builder.fmul(load_elements(builder, x, index, halves=halves), totals[0][0])
                store_elements(builder, builder.fmul(lanes, factors), out, index, halves=halves)
                return totals

            squares = counted_loop(function, builder, vectors, [[constant(0.0)]], square)[0][0]
            share, epsilon = (load(builder, builder.add(constants, integer(4 * i)), FLOAT) for i in range(2))
            mean = builder.fadd(builder.fmul(total(builder, squares), share), epsilon)
            root = call_named(builder, "llvm.sqrt.f32", FLOAT, [mean])
            inverse = broadcast(builder, builder.fdiv(ir.Constant(FLOAT, 1.0), root))
            counted_loop(function, builder, vectors, [[inverse]], scale)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic("norm_row", 6, write)


def _silu(builder: ir.IRBuilder, x: Value) -> Value:
    power = exponential(builder, call_named(builder, "llvm.minnum.v16f32", FLOATS, [builder.fneg(x), constant(87.0)]))
    return builder.fdiv(x, builder.fadd(constant(1.0), power))


def _gelu_tanh(builder: ir.IRBuilder, x: Value) -> Value:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)."""
    cube = builder.fmul(builder.fmul(x, x), x)
    inner = builder.fmul(fused_multiply_add(builder, cube, constant(0.044715), x), constant(0.7978845608028654))
    tangent = builder.fadd(hyperbolic_tangent(builder, inner), constant(1.0))
    return builder.fmul(builder.fmul(x, constant(0.5)), tangent)


def _gated_row(name: str, activate: Callable[[ir.IRBuilder, Value], Value]) -> Any:
    """Numba intrinsic `(paired, gate, up, out, vectors)`: out = activate(gate) * up, one row."""

    def write(function: ir.Function) -> None:
        paired, gate, up, out, vectors = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                active = activate(builder, load_elements(builder, gate, index, halves=halves))
                product = builder.fmul(active, load_elements(builder, up, index, halves=halves))
                store_elements(builder, product, out, index, halves=halves)
                return totals

            counted_loop(function, builder, vectors, [[constant(0.0)]], step)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic(name, 5, write)


_norm = _norm_row()
_silu_row = _gated_row("silu_row", _silu)
_gelu_row = _gated_row("gelu_row", _gelu_tanh)
ACTIVATIONS = ("silu", "gelu_tanh")


@cfunc(ITEM_SIGNATURE, cache=True)
def _norm_item(arguments, item, thread):
    """ITEM_ROWS rows of RMSNorm."""
    words = arguments_at(arguments, NORM_WORDS)
    paired, x, weight, out, rows, vectors, constants = (
        words[0], words[1], words[2], words[3], words[4], words[5], words[6]
    )  # fmt: skip
    size = vectors * (32 if paired else 64)
    for row in range(item * ITEM_ROWS, min(rows, (item + 1) * ITEM_ROWS)):
        _norm(paired, x + row * size, weight, out + row * size, vectors, constants)


@cfunc(ITEM_SIGNATURE, cache=True)
def _gated_item(arguments, item, thread):
    """ITEM_ROWS rows of a gated activation."""
    words = arguments_at(arguments, GATED_WORDS)
    silu, paired, x, out, rows, vectors = words[0], words[1], words[2], words[3], words[4], words[5]
    size = vectors * (32 if paired else 64)
    for row in range(item * ITEM_ROWS, min(rows, (item + 1) * ITEM_ROWS)):
        gate, target = x + 2 * row * size, out + row * size
        if silu:
            _silu_row(paired, gate, gate + size, target, vectors)
        else:
            _gelu_row(paired, gate, gate + size, target, vectors)


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

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., size] in bfloat16 or float32; the same shape and dtype, computed in float32."""
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty_like(x)
        rows = x.numel() // self._size
        words = self._words
        words[0], words[1] = x.dtype == torch.bfloat16, x.data_ptr()
        words[3], words[4] = out.data_ptr(), rows
        self._team.run(_norm_item, self._arguments, -(-rows // ITEM_ROWS))
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
        self._team.run(_gated_item, self._arguments, -(-rows // ITEM_ROWS))
        return out
