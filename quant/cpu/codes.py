"""Codes of one byte, int8 and e4m3, made wide in LLVM code: 64 at a time, in the order that tile products read.

Inner order of 64 codes (a pair is two codes for a model in bfloat16, one for float32):

    float32   [4 steps][16 columns]
    bfloat16  [4 quarters][2 steps][8]: a quarter is 4 columns of pairs

The second puts the two steps where interleaving low and high bytes, within the quarters of a vector, leaves them whole.
Both formats are exact in bfloat16.
"""

from __future__ import annotations

import struct
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from quant.cpu.arithmetic import call_named
from quant.cpu.instructions import (
    FLOATS,
    HALVES,
    INTS,
    LANES,
    Value,
    as_intrinsic,
    both_kinds,
    constant,
    counted_loop,
    integer,
    load,
    offset_by,
    prefetch,
    store,
)  # fmt: skip

# How a page's elements are stored, in a job's words.
PLAIN, INT8_CODES, FP8_CODES = 0, 1, 2
GROUP = 64
CODES, QUARTER = ir.VectorType(ir.IntType(8), GROUP), ir.VectorType(ir.IntType(8), LANES)
# Looking 64 bytes up in a table of 128 at once: halves the work of widening through float32.
BYTE_TABLES = bool(llvm.get_host_cpu_features().get("avx512vbmi", False))
NAN_BITS = 0x7FC00000


def _magnitude(code: int, *, fp8: bool) -> float:
    """What a code without its sign stands for."""
    if not fp8:
        return float(code)
    if code == 0x7F:
        return float("nan")
    exponent, mantissa = code >> 3, code & 7
    return mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def _table(first: int, byte: int, *, fp8: bool) -> ir.Constant:
    """The low (0) or high (1) byte of the bfloat16 that each of 64 codes from `first` on stands for."""
    halves = [struct.pack("<f", _magnitude(code, fp8=fp8))[2:] for code in range(first, first + GROUP)]
    return ir.Constant(CODES, [half[byte] for half in halves])


def _looked_up(builder: ir.IRBuilder, index: Value, byte: int, *, fp8: bool) -> Value:
    """The byte of each code's bfloat16; a code's sign is not looked at."""
    tables = (_table(0, byte, fp8=fp8), _table(GROUP, byte, fp8=fp8))
    return call_named(builder, "llvm.x86.avx512.vpermi2var.qi.512", CODES, [tables[0], index, tables[1]])


def _steps_by_table(builder: ir.IRBuilder, codes: Value, *, fp8: bool) -> list[Value]:
    """Two steps of 32 bfloat16 each, as bytes."""
    negated = builder.sub(ir.Constant(CODES, [0] * GROUP), codes)
    zero = ir.Constant(CODES, [0] * GROUP)
    index = codes if fp8 else builder.select(builder.icmp_signed("<", codes, zero), negated, codes)
    sign = builder.and_(codes, ir.Constant(CODES, [0x80] * GROUP))
    low = _looked_up(builder, index, 0, fp8=fp8)
    high = builder.or_(_looked_up(builder, index, 1, fp8=fp8), sign)
    pairs = [[quarter * 16 + half * 8 + lane for quarter in range(4) for lane in range(8)] for half in (0, 1)]
    orders = [[place for lane in half for place in (lane, lane + GROUP)] for half in pairs]
    kind = ir.VectorType(ir.IntType(32), GROUP)
    return [builder.shuffle_vector(low, high, ir.Constant(kind, order)) for order in orders]


def widened(builder: ir.IRBuilder, codes: Value, *, fp8: bool) -> Value:
    """16 codes as float32 lanes."""
    if not fp8:
        return builder.sitofp(builder.sext(codes, INTS), FLOATS)
    whole = builder.zext(codes, INTS)
    magnitude = builder.and_(whole, ir.Constant(INTS, [0x7F] * LANES))
    # Not as subnormals of float32, which a thread may be set to take for zeros.
    small = builder.fmul(builder.sitofp(magnitude, FLOATS), constant(2.0**-9))
    shifted = builder.add(
        builder.shl(magnitude, ir.Constant(INTS, [20] * LANES)), ir.Constant(INTS, [120 << 23] * LANES)
    )
    bits = builder.select(
        builder.icmp_signed("<", magnitude, ir.Constant(INTS, [8] * LANES)), builder.bitcast(small, INTS), shifted
    )
    no_number = builder.icmp_signed("==", magnitude, ir.Constant(INTS, [0x7F] * LANES))
    bits = builder.select(no_number, ir.Constant(INTS, [NAN_BITS] * LANES), bits)
    sign = builder.shl(builder.and_(whole, ir.Constant(INTS, [0x80] * LANES)), ir.Constant(INTS, [24] * LANES))
    return builder.bitcast(builder.or_(bits, sign), FLOATS)


def _some(builder: ir.IRBuilder, codes: Value, places: list[int]) -> Value:
    return builder.shuffle_vector(codes, codes, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


def _steps_by_widening(builder: ir.IRBuilder, codes: Value, *, fp8: bool) -> list[Value]:
    """The four vectors of 16 bfloat16 that two steps are."""
    vectors = []
    for half in (0, 1):
        for quarters in ((0, 1), (2, 3)):
            lanes = _some(builder, codes, [q * 16 + half * 8 + lane for q in quarters for lane in range(8)])
            bits = builder.bitcast(widened(builder, lanes, fp8=fp8), INTS)
            vectors.append(builder.trunc(builder.lshr(bits, ir.Constant(INTS, [16] * LANES)), HALVES))
    return vectors


def _group(builder: ir.IRBuilder, codes: Value, *, halves: bool, fp8: bool) -> list[Value]:
    """The vectors that 64 codes become, in order."""
    if not halves:
        parts = [_some(builder, codes, list(range(first, first + LANES))) for first in range(0, GROUP, LANES)]
        return [widened(builder, part, fp8=fp8) for part in parts]
    if BYTE_TABLES:
        return _steps_by_table(builder, codes, fp8=fp8)
    return _steps_by_widening(builder, codes, fp8=fp8)


def steps_of(builder: ir.IRBuilder, codes: Value, *, fp8: bool) -> list[Value]:
    """The two steps of a group for a model in bfloat16: 16 lanes of 32 bits each, a pair in each."""
    vectors = _group(builder, codes, halves=True, fp8=fp8)
    if len(vectors) > 2:
        joined = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), list(range(2 * LANES)))
        vectors = [builder.shuffle_vector(vectors[i], vectors[i + 1], joined) for i in (0, 2)]
    return [builder.bitcast(vector, INTS) for vector in vectors]


def _widen_codes() -> Any:
    """Numba intrinsic `(kind, paired, source, target, count)`.

    Writes `count` (at least 1) groups of 64 codes at `source` as bfloat16 where `paired`, else as float32, one behind
    the other. kind: INT8_CODES (none of which is -128) or FP8_CODES.
    """

    def write(function: ir.Function) -> None:
        kind, paired, source, target, count = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            def loop(builder: ir.IRBuilder, *, fp8: bool) -> None:
                def step(builder: ir.IRBuilder, index: Value, totals: Any) -> Any:
                    codes = load(builder, builder.add(source, builder.mul(index, integer(GROUP))), CODES, align=1)
                    size = GROUP * (2 if halves else 4)
                    place = builder.add(target, builder.mul(index, integer(size)))
                    vectors = _group(builder, codes, halves=halves, fp8=fp8)
                    for number, vector in enumerate(vectors):
                        store(builder, vector, offset_by(builder, place, number * (size // len(vectors))), align=1)
                    return totals

                counted_loop(function, builder, count, [], step)

            with builder.if_else(builder.icmp_signed("==", kind, integer(FP8_CODES))) as (floating, whole):
                with floating:
                    loop(builder, fp8=True)
                with whole:
                    loop(builder, fp8=False)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic("widen_codes", 5, write)


def _ask_for() -> Any:
    """Numba intrinsic `(address, lines)`: asks for that many (at least 1) cache lines, into the second-level cache."""

    def write(function: ir.Function) -> None:
        address, lines = function.args
        builder = ir.IRBuilder(function.append_basic_block("entry"))

        def step(builder: ir.IRBuilder, index: Value, totals: Any) -> Any:
            prefetch(builder, builder.add(address, builder.mul(index, integer(64))))
            return totals

        counted_loop(function, builder, lines, [], step)
        builder.ret_void()

    return as_intrinsic("ask_for", 2, write)


widen_codes = _widen_codes()
ask_for = _ask_for()
