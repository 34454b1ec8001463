"""One row of an online softmax in LLVM code, because numba's vectoriser leaves the exponential scalar.

Method: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.cpu.arithmetic import call_named, exponential, hyperbolic_tangent, largest
from quant.cpu.arithmetic import total as total_of_lanes
from quant.cpu.instructions import (
    FLOAT,
    FLOATS,
    INTS,
    LANES,
    VECTOR_BYTES,
    as_intrinsic,
    both_kinds,
    broadcast,
    constant,
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
    """Numba intrinsic `(paired, scores, weights, low, high, scaling, peak, total, factor)`.

    All but paired, low and high are addresses. scores: [64] float32, not changed. Writes weights [64] =
    e^(score * scaling - new peak), 0 outside [low, high), as bfloat16 where `paired`, else float32; moves peak to the
    highest score so far; factor becomes e^(old - new peak), total becomes total * factor + the weights' sum.
    """

    def write(function: ir.Function) -> None:
        paired, scores, weights, low, high, scaling, peak, total, factor = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            lanes = ir.Constant(INTS, list(range(LANES)))
            first, end = (broadcast(builder, builder.trunc(edge, INTS.element)) for edge in (low, high))
            scale = broadcast(builder, load(builder, scaling, FLOAT))
            rows, seen = [], []
            for vector in range(ROW_VECTORS):
                index = builder.add(lanes, ir.Constant(INTS, [vector * LANES] * LANES))
                inside = builder.and_(builder.icmp_signed(">=", index, first), builder.icmp_signed("<", index, end))
                value = builder.fmul(load(builder, offset_by(builder, scores, vector * VECTOR_BYTES), FLOATS), scale)
                rows.append(builder.select(inside, value, constant(HIDDEN)))
                seen.append(inside)
            before = broadcast(builder, load(builder, peak, FLOAT))
            highest = before
            for row in rows:
                highest = call_named(builder, "llvm.maxnum.v16f32", FLOATS, [highest, row])
            top = largest(builder, highest)
            after = broadcast(builder, top)
            added = constant(0.0)
            for vector, (row, inside) in enumerate(zip(rows, seen, strict=True)):
                weight = exponential(builder, builder.fsub(row, after))
                weight = builder.select(inside, weight, constant(0.0))
                added = builder.fadd(added, weight)
                width = VECTOR_BYTES // 2 if halves else VECTOR_BYTES
                stored = rounded_to_halves(builder, weight) if halves else weight
                store(builder, stored, offset_by(builder, weights, vector * width), align=2)
            share = builder.extract_element(
                exponential(builder, builder.fsub(before, after)), ir.Constant(INTS.element, 0)
            )
            reduced = total_of_lanes(builder, added)
            store(builder, top, peak)
            store(builder, share, factor)
            store(builder, builder.fadd(builder.fmul(load(builder, total, FLOAT), share), reduced), total)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic("soften_row", 9, write)


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


soften_row = _soften_row()
cap_scores = _cap_scores()
