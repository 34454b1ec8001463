"""Packed keys turned into packed values, in LLVM code: what latents need, whose keys are also their values.

A block of 16 positions, as keys, is [steps][16 positions][pair of elements]; as values it is
[blocks of 16 elements][steps][16 elements][pair of positions].
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.cpu.instructions import (
    INTS,
    LANES,
    VECTOR_BYTES,
    Value,
    as_intrinsic,
    both_kinds,
    counted_loop,
    integer,
    load,
    offset_by,
    store,
)  # fmt: skip

PAIRS = ir.VectorType(ir.IntType(16), 2 * LANES)
LOW = [place for lane in range(LANES // 2) for place in (lane, lane + LANES)]
HIGH = [place + LANES // 2 for place in LOW]


def _transposed(builder: ir.IRBuilder, vectors: list[Value]) -> list[Value]:
    """The lanes of a power of two of vectors, the vector's number made the fastest index, by perfect shuffles.

    Interleaving the first half of the vectors with the second moves the highest bit of an element's address to the
    lowest place; as many rounds as the number has bits move all of it.
    """
    half = len(vectors) // 2
    for _ in range(len(vectors).bit_length() - 1):
        vectors = [
            builder.shuffle_vector(vectors[index], vectors[index + half], ir.Constant(INTS, order))
            for index in range(half)
            for order in (LOW, HIGH)
        ]
    return vectors


def _paired_positions(builder: ir.IRBuilder, vector: Value) -> Value:
    """[2 positions][16 elements] of 16 bits -> [16 elements][2 positions]."""
    halves = builder.bitcast(vector, PAIRS)
    order = [place for element in range(LANES) for place in (element, element + LANES)]
    kind = ir.VectorType(ir.IntType(32), 2 * LANES)
    return builder.shuffle_vector(halves, halves, ir.Constant(kind, order))


def _turn_block() -> Any:
    """Numba intrinsic `(paired, source, target, blocks, block_stride)`.

    source: one packed block of 16 keys; writes its first `blocks` (at least 1) times 16 elements as values of these 16
    positions, each value block `block_stride` bytes behind the one before.
    """

    def write(function: ir.Function) -> None:
        paired, source, target, blocks, block_stride = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            count = LANES // 2 if halves else LANES

            def step(builder: ir.IRBuilder, index: Value, totals: Any) -> Any:
                begin = builder.add(source, builder.mul(index, integer(count * VECTOR_BYTES)))
                place = builder.add(target, builder.mul(index, block_stride))
                vectors = [load(builder, offset_by(builder, begin, i * VECTOR_BYTES), INTS) for i in range(count)]
                for i, vector in enumerate(_transposed(builder, vectors)):
                    turned = _paired_positions(builder, vector) if halves else vector
                    store(builder, turned, offset_by(builder, place, i * VECTOR_BYTES))
                return totals

            counted_loop(function, builder, blocks, [], step)
            builder.ret_void()

        both_kinds(function, paired, body)

    return as_intrinsic("turn_block", 5, write)


turn_block = _turn_block()
