"""Arithmetic on 16 float32 lanes in LLVM code: the exponential, reductions, and rows of either element kind."""

from __future__ import annotations

from llvmlite import ir

from quant.cpu.instructions import (
    FLOATS,
    HALVES,
    INTS,
    LANES,
    Value,
    constant,
    fused_multiply_add,
    integer,
    load,
    rounded_to_halves,
    store,
)  # fmt: skip


def call_named(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[Value]) -> Value:
    """Calls an LLVM intrinsic by its full name, declaring it where the module lacks it."""
    function = builder.module.globals.get(name)
    if function is None:
        kinds = [argument.type for argument in arguments]
        function = ir.Function(builder.module, ir.FunctionType(result, kinds), name)
    return builder.call(function, arguments)


def exponential(builder: ir.IRBuilder, x: Value) -> Value:
    """e^x lane by lane for x <= 88, to about 2e-7 relative (Cephes expf); below -87 it is 0. A NaN stays one."""
    clipped = call_named(builder, "llvm.maxnum.v16f32", FLOATS, [x, constant(-87.0)])
    n = call_named(builder, "llvm.rint.v16f32", FLOATS, [builder.fmul(clipped, constant(1.44269504088896341))])
    # ln 2 in two parts, so that the remainder is exact.
    r = fused_multiply_add(builder, n, constant(-0.693359375), clipped)
    r = fused_multiply_add(builder, n, constant(2.12194440e-4), r)
    p = constant(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fused_multiply_add(builder, p, r, constant(coefficient))
    p = builder.fadd(fused_multiply_add(builder, p, builder.fmul(r, r), r), constant(1.0))
    biased = builder.add(builder.fptosi(n, INTS), ir.Constant(INTS, [127] * LANES))
    power = builder.bitcast(builder.shl(biased, ir.Constant(INTS, [23] * LANES)), FLOATS)
    result = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(0.0), builder.fmul(p, power))
    return builder.select(builder.fcmp_unordered("uno", x, x), x, result)


def power_of_two(builder: ir.IRBuilder, x: Value) -> Value:
    """2^x lane by lane for x <= 127, to about 2e-7 relative (Cephes exp2f); below -126 it is 2^-126. A NaN stays one.

    Half the instructions of `exponential`: for softmax, whose scores are multiplied by log2 e with their scaling.
    """
    # In this order the comparison is false for a NaN, which so gets through; it is one instruction on x86.
    clipped = builder.select(builder.fcmp_ordered(">", constant(-126.0), x), constant(-126.0), x)
    n = call_named(builder, "llvm.rint.v16f32", FLOATS, [clipped])
    r = builder.fsub(clipped, n)
    p = constant(1.535336188319500e-4)
    for coefficient in (
        1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1, 6.931472028550421e-1,
        1.0,
    ):  # fmt: skip
        p = fused_multiply_add(builder, p, r, constant(coefficient))
    exponent = builder.shl(builder.fptosi(n, INTS), ir.Constant(INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(p, INTS), exponent), FLOATS)


def larger(builder: ir.IRBuilder, left: Value, right: Value) -> Value:
    """The larger lane of two; `right` where either is a NaN. One instruction on x86, unlike LLVM's maxnum."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def hyperbolic_tangent(builder: ir.IRBuilder, x: Value) -> Value:
    """tanh x = 1 - 2 / (e^2x + 1), lane by lane; absolute error about 2e-7."""
    twice = call_named(builder, "llvm.minnum.v16f32", FLOATS, [builder.fadd(x, x), constant(80.0)])
    power = builder.fadd(exponential(builder, twice), constant(1.0))
    result = builder.fsub(constant(1.0), builder.fdiv(constant(2.0), power))
    return builder.select(builder.fcmp_unordered("uno", x, x), x, result)


def _turned(builder: ir.IRBuilder, lanes: Value, width: int) -> Value:
    order = ir.Constant(INTS, [(lane + width) % LANES for lane in range(LANES)])
    return builder.shuffle_vector(lanes, lanes, order)


def largest(builder: ir.IRBuilder, lanes: Value) -> Value:
    """The largest lane, in all lanes."""
    for width in (8, 4, 2, 1):
        lanes = larger(builder, lanes, _turned(builder, lanes, width))
    return lanes


def total(builder: ir.IRBuilder, lanes: Value) -> Value:
    """The sum over lanes, pairwise: LLVM may not reorder the plain reduction, which would add one after the other."""
    for width in (8, 4, 2, 1):
        lanes = builder.fadd(lanes, _turned(builder, lanes, width))
    return builder.extract_element(lanes, ir.Constant(INTS.element, 0))


def load_elements(builder: ir.IRBuilder, address: Value, index: Value, *, halves: bool) -> Value:
    """The `index`-th 16 elements from `address` on, as float32."""
    if not halves:
        return load(builder, builder.add(address, builder.mul(index, integer(64))), FLOATS)
    bits = load(builder, builder.add(address, builder.mul(index, integer(32))), HALVES, align=2)
    return builder.bitcast(builder.shl(builder.zext(bits, INTS), ir.Constant(INTS, [16] * LANES)), FLOATS)


def store_elements(builder: ir.IRBuilder, value: Value, address: Value, index: Value, *, halves: bool) -> None:
    """Writes float32 lanes as the `index`-th 16 elements from `address` on."""
    place = builder.add(address, builder.mul(index, integer(32 if halves else 64)))
    store(builder, rounded_to_halves(builder, value) if halves else value, place, align=2 if halves else 4)
