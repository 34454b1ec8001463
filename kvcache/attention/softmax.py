"""One row of an online softmax in LLVM code, because numba's vectoriser leaves the exponential scalar.

Method: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.cpu.arithmetic import hyperbolic_tangent, larger, largest, power_of_two
from quant.cpu.arithmetic import total as total_of_lanes
from quant.cpu.instructions import (
    FLOAT,
    FLOATS,
    INTS,
    LANES,
    VECTOR_BYTES,
    Value,
    as_intrinsic,
    both_kinds,
    broadcast,
    constant,
    integer,
    load,
    offset_by,
    rounded_to_halves,
    store,
)  # fmt: skip

# Positions of a row, in vectors of 16.
ROW_VECTORS = 4
# Scores that count as hidden; finite, so that differences stay finite.
HIDDEN = -1.0e30


def _soften_row() -> Any:
    """Numba intrinsic `(paired, scores, weights, low, high, scaling, peak, total, factor, shares)`.

    All but paired, low and high are addresses. scores: [64] float32, not changed. With weight = 2^(score * scaling -
    new peak), 0 outside [low, high): writes weights [64] = weight * share, as bfloat16 where `paired`, else float32;
    moves peak to the highest scaled score so far; factor becomes 2^(old - new peak), total becomes total * factor +
    the sum of weight. shares: [64] float32, what a value is still to be multiplied by (its scale); those outside
    [low, high) may be anything. (Powers of two cost half of those of e; callers scale by log2 e.)
    """

    def write(function: ir.Function) -> None:
        def body(builder: ir.IRBuilder, halves: bool) -> None:
            low, high = function.args[3:5]
            whole = builder.and_(
                builder.icmp_signed("<=", low, integer(0)),
                builder.icmp_signed(">=", high, integer(ROW_VECTORS * LANES)),
            )
            with builder.if_else(whole) as (all_seen, some_hidden):
                with all_seen:
                    _soften(builder, function.args, halves=halves, masked=False)
                with some_hidden:
                    _soften(builder, function.args, halves=halves, masked=True)
            builder.ret_void()

        both_kinds(function, function.args[0], body)

    return as_intrinsic("soften_row", 10, write)


def _soften(builder: ir.IRBuilder, arguments: Any, *, halves: bool, masked: bool) -> None:
    _, scores, weights, low, high, scaling, peak, total, factor, shares = arguments
    scale = broadcast(builder, load(builder, scaling, FLOAT))
    seen = [_inside(builder, low, high, vector) if masked else None for vector in range(ROW_VECTORS)]
    rows = []
    for vector, inside in enumerate(seen):
        value = builder.fmul(load(builder, offset_by(builder, scores, vector * VECTOR_BYTES), FLOATS), scale)
        rows.append(value if inside is None else builder.select(inside, value, constant(HIDDEN)))
    before = broadcast(builder, load(builder, peak, FLOAT))
    highest = before
    for row in rows:
        highest = larger(builder, row, highest)
    after = largest(builder, highest)
    added = constant(0.0)
    width = VECTOR_BYTES // 2 if halves else VECTOR_BYTES
    for vector, (row, inside) in enumerate(zip(rows, seen, strict=True)):
        weight = power_of_two(builder, builder.fsub(row, after))
        if inside is not None:
            weight = builder.select(inside, weight, constant(0.0))
        added = builder.fadd(added, weight)
        weight = builder.fmul(weight, load(builder, offset_by(builder, shares, vector * VECTOR_BYTES), FLOATS))
        if inside is not None:
            # Where nothing was written a share may be a NaN.
            weight = builder.select(inside, weight, constant(0.0))
        stored = rounded_to_halves(builder, weight) if halves else weight
        store(builder, stored, offset_by(builder, weights, vector * width), align=2)
    first = ir.Constant(INTS.element, 0)
    share = builder.extract_element(power_of_two(builder, builder.fsub(before, after)), first)
    store(builder, builder.extract_element(after, first), peak)
    store(builder, share, factor)
    sum_so_far = builder.fmul(load(builder, total, FLOAT), share)
    store(builder, builder.fadd(sum_so_far, total_of_lanes(builder, added)), total)


def _inside(builder: ir.IRBuilder, low: Value, high: Value, vector: int) -> Value:
    """Which of the vector's positions lie in [low, high)."""
    first, end = (broadcast(builder, builder.trunc(edge, INTS.element)) for edge in (low, high))
    index = ir.Constant(INTS, [vector * LANES + lane for lane in range(LANES)])
    return builder.and_(builder.icmp_signed(">=", index, first), builder.icmp_signed("<", index, end))


def _cap_scores() -> Any:
    """Numba intrinsic `(scores, scaling, softcap)`, all addresses.

    scores [64] become softcap * tanh(scores * scaling / softcap) / scaling, so that what follows may scale all scores
    alike.
    """

    def write(function: ir.Function) -> None:
        scores, scaling, softcap = function.args
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        scale, cap = (broadcast(builder, load(builder, place, FLOAT)) for place in (scaling, softcap))
        for vector in range(ROW_VECTORS):
            place = offset_by(builder, scores, vector * VECTOR_BYTES)
            y = builder.fdiv(builder.fmul(load(builder, place, FLOATS), scale), cap)
            tangent = hyperbolic_tangent(builder, y)
            store(builder, builder.fdiv(builder.fmul(tangent, cap), scale), place)
        builder.ret_void()

    return as_intrinsic("cap_scores", 3, write)


def _scale_scores() -> Any:
    """Numba intrinsic `(scores, scales)`, addresses of [64] float32: multiplies scores by their keys' scales."""

    def write(function: ir.Function) -> None:
        scores, scales = function.args
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        for vector in range(ROW_VECTORS):
            place = offset_by(builder, scores, vector * VECTOR_BYTES)
            scale = load(builder, offset_by(builder, scales, vector * VECTOR_BYTES), FLOATS)
            store(builder, builder.fmul(load(builder, place, FLOATS), scale), place)
        builder.ret_void()

    return as_intrinsic("scale_scores", 2, write)


soften_row = _soften_row()
scale_scores = _scale_scores()
cap_scores = _cap_scores()
