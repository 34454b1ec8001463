"""Rows in LLVM code: RMSNorm, gated activations, addition and rotation of one row of float32 or bfloat16 elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from quant.cpu.arithmetic import call_named, exponential, hyperbolic_tangent, load_elements, store_elements, total
from quant.cpu.instructions import (
    FLOAT,
    FLOATS,
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


def _add_row() -> Any:
    """Numba intrinsic `(paired, x, other, vectors)`: x += other, rounded to the element kind."""

    def write(function: ir.Function) -> None:
        paired, x, other, vectors = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                left, right = (load_elements(builder, place, index, halves=halves) for place in (x, other))
                store_elements(builder, builder.fadd(left, right), x, index, halves=halves)
                return totals

            counted_loop(function, builder, vectors, [[constant(0.0)]], step)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic("add_row", 4, write)


def _rotate_row() -> Any:
    """Numba intrinsic `(paired, head, cos, sin, vectors)`: rotates a head of 2 * vectors * 16 elements in place.

    The first half is rotated against the second; cos and sin have the head's size and kind. (Su et al., "RoFormer",
    2021, in the order of GPT-NeoX.)
    """

    def write(function: ir.Function) -> None:
        paired, head, cos, sin, vectors = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                other = builder.add(index, vectors)
                first, second = (load_elements(builder, head, at, halves=halves) for at in (index, other))
                cosines = [load_elements(builder, cos, at, halves=halves) for at in (index, other)]
                sines = [load_elements(builder, sin, at, halves=halves) for at in (index, other)]
                turned = builder.fsub(builder.fmul(first, cosines[0]), builder.fmul(second, sines[0]))
                store_elements(builder, turned, head, index, halves=halves)
                turned = builder.fadd(builder.fmul(second, cosines[1]), builder.fmul(first, sines[1]))
                store_elements(builder, turned, head, other, halves=halves)
                return totals

            counted_loop(function, builder, vectors, [[constant(0.0)]], step)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic("rotate_row", 5, write)


norm_row = _norm_row()
silu_row = _gated_row("silu_row", _silu)
gelu_row = _gated_row("gelu_row", _gelu_tanh)
add_row = _add_row()
rotate_row = _rotate_row()
