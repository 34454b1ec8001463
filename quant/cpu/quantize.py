"""Rows of bfloat16 or float32 made codes of one byte with a scale, in LLVM code: what the codecs of `quant.kv` give.

Equal to them bit for bit: the scale is the smallest bfloat16 that brings the row's largest element within the range,
elements are divided by it and rounded to nearest even.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.cpu.arithmetic import call_named, load_elements
from quant.cpu.codes import FP8_CODES, NAN_BITS, QUARTER
from quant.cpu.instructions import (
    FLOATS,
    INTS,
    LANES,
    Totals,
    Value,
    as_intrinsic,
    both_kinds,
    constant,
    counted_loop,
    integer,
    store,
)  # fmt: skip

LARGEST_INT8, LARGEST_FP8 = 127.0, 448.0
HALF = ir.IntType(16)


def _ints(value: int) -> ir.Constant:
    return ir.Constant(INTS, [value] * LANES)


def _larger_bits(builder: ir.IRBuilder, left: Value, right: Value) -> Value:
    """Of bits without their sign: these are ordered as the numbers, and a NaN is above all."""
    return builder.select(builder.icmp_signed(">", left, right), left, right)


def _peak(builder: ir.IRBuilder, function: ir.Function, source: Value, vectors: Value, *, halves: bool) -> Value:
    """The largest |element| of the row in all lanes; a NaN where there is one."""

    def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
        bits = builder.bitcast(load_elements(builder, source, index, halves=halves), INTS)
        size = builder.and_(bits, _ints(0x7FFFFFFF))
        return [[builder.bitcast(_larger_bits(builder, size, builder.bitcast(totals[0][0], INTS)), FLOATS)]]

    ((largest,),) = counted_loop(function, builder, vectors, [[constant(0.0)]], step)
    lanes = builder.bitcast(largest, INTS)
    for width in (8, 4, 2, 1):
        order = ir.Constant(INTS, [(lane + width) % LANES for lane in range(LANES)])
        lanes = _larger_bits(builder, lanes, builder.shuffle_vector(lanes, lanes, order))
    return builder.bitcast(lanes, FLOATS)


def _scale_bits(builder: ir.IRBuilder, peak: Value, largest: float) -> Value:
    """Bits of the scale, a float32 that is a bfloat16; see `quant.kv.scale`."""
    bits = builder.bitcast(builder.fdiv(peak, constant(largest)), INTS)
    upward = builder.and_(builder.add(bits, _ints(0xFFFF)), _ints(0xFFFF0000))
    kept = builder.select(builder.icmp_signed(">=", bits, _ints(0x7F800000)), bits, upward)
    kept = builder.select(builder.icmp_signed("==", kept, _ints(0)), _ints(0x3F800000), kept)
    return builder.select(builder.icmp_signed(">", kept, _ints(0x7F800000)), _ints(NAN_BITS), kept)


def _int8_codes(builder: ir.IRBuilder, x: Value) -> Value:
    level = call_named(builder, "llvm.rint.v16f32", FLOATS, [x])
    level = builder.select(builder.fcmp_unordered("uno", x, x), constant(0.0), level)
    level = builder.select(builder.fcmp_ordered(">", level, constant(LARGEST_INT8)), constant(LARGEST_INT8), level)
    level = builder.select(builder.fcmp_ordered("<", level, constant(-LARGEST_INT8)), constant(-LARGEST_INT8), level)
    return builder.trunc(builder.fptosi(level, INTS), QUARTER)


def _fp8_codes(builder: ir.IRBuilder, x: Value) -> Value:
    """As torch rounds to float8_e4m3fn: to nearest even, NaN from 480 on."""
    bits = builder.bitcast(x, INTS)
    sign = builder.lshr(builder.and_(bits, _ints(0x80000000)), _ints(24))
    size = builder.and_(bits, _ints(0x7FFFFFFF))
    # Below 2^-6 the addition of 2^14 rounds to steps of 2^-9, the smallest code.
    added = builder.fadd(builder.bitcast(size, FLOATS), constant(2.0**14))
    small = builder.sub(builder.bitcast(added, INTS), _ints(141 << 23))
    odd = builder.and_(builder.lshr(size, _ints(20)), _ints(1))
    moved = builder.add(builder.add(size, _ints((0x7FFFF - (120 << 23)) & 0xFFFFFFFF)), odd)
    code = builder.select(builder.icmp_signed("<", size, _ints(121 << 23)), small, builder.lshr(moved, _ints(20)))
    code = builder.select(builder.icmp_signed(">=", size, _ints(1087 << 20)), _ints(0x7F), code)
    return builder.trunc(builder.or_(code, sign), QUARTER)


def _quantize_row() -> Any:
    """Numba intrinsic `(kind, paired, source, size, codes, scale)`.

    source: `size` elements, a multiple of 16, bfloat16 where `paired`, else float32. Writes as many codes of the kind
    (INT8_CODES, FP8_CODES), in the row's order, and the row's scale, a bfloat16.
    """

    def write(function: ir.Function) -> None:
        kind, paired, source, size, codes, scale = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            vectors = builder.lshr(size, integer(4))
            peak = _peak(builder, function, source, vectors, halves=halves)

            def encode(builder: ir.IRBuilder, largest: float, codes_of: Any) -> None:
                bits = _scale_bits(builder, peak, largest)
                divisor = builder.bitcast(bits, FLOATS)
                first = builder.extract_element(bits, ir.Constant(INTS.element, 0))
                store(builder, builder.trunc(builder.lshr(first, ir.Constant(INTS.element, 16)), HALF), scale, align=2)

                def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                    x = builder.fdiv(load_elements(builder, source, index, halves=halves), divisor)
                    place = builder.add(codes, builder.mul(index, integer(LANES)))
                    store(builder, codes_of(builder, x), place, align=1)
                    return totals

                counted_loop(function, builder, vectors, [], step)

            with builder.if_else(builder.icmp_signed("==", kind, integer(FP8_CODES))) as (floating, whole):
                with floating:
                    encode(builder, LARGEST_FP8, _fp8_codes)
                with whole:
                    encode(builder, LARGEST_INT8, _int8_codes)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic("quantize_row", 6, write)


quantize_row = _quantize_row()
