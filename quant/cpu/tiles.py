"""Tile products in LLVM code: a few rows of activations times a few blocks of 16 packed columns.

All sums of a tile stay in vector registers. Two element kinds are known, each with its packed order of a block of
16 columns over `depth` values:

    float32   [depth][16]          one fused multiply-add per 16 columns and value
    bfloat16  [depth / 2][16][2]   one dot product of pairs per 16 columns and two values (VDPBF16PS where the
                                   processor has it, else two fused multiply-adds on the widened halves)

The register-blocked outer product follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
(2008). Packed columns of bfloat16 may also be codes of one byte, in the order that `codes` says, widened in registers.
Everything here takes raw addresses; shapes and lifetimes are the callers' business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from quant.cpu.codes import CODES, GROUP, steps_of
from quant.cpu.instructions import (
    FLOAT,
    FLOATS,
    INT32,
    INT64,
    INTS,
    LANES,
    PAIR_DOT,
    VECTOR_BYTES,
    Totals,
    Value,
    as_intrinsic,
    both_kinds,
    broadcast,
    counted_loop,
    defined,
    fused_multiply_add,
    integer,
    load,
    offset_by,
    prefetch,
    rounded_to_halves,
    row_address,
    store,
)

# Rows of the tallest tile: 6 times 4 blocks of sums leave registers for the factors.
TALLEST = 6


def _widened(builder: ir.IRBuilder, pairs: Value) -> tuple[Value, Value]:
    """The low and the high bfloat16 of each 32-bit lane as float32."""
    low = builder.shl(pairs, ir.Constant(INTS, [16] * LANES))
    high = builder.and_(pairs, ir.Constant(INTS, [0xFFFF0000] * LANES))
    return builder.bitcast(low, FLOATS), builder.bitcast(high, FLOATS)


def _pair_dot(builder: ir.IRBuilder, total: Value, left: Value, right: Value) -> Value:
    """total + left.low * right.low + left.high * right.high, lane by lane; left and right hold bfloat16 pairs."""
    if PAIR_DOT:
        kind = ir.FunctionType(FLOATS, [FLOATS, INTS, INTS])
        return builder.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, left, right])
    (left_low, left_high), (right_low, right_high) = _widened(builder, left), _widened(builder, right)
    total = fused_multiply_add(builder, left_low, right_low, total)
    return fused_multiply_add(builder, left_high, right_high, total)


def _product_step(
    builder: ir.IRBuilder,
    totals: Totals,
    rows: list[Value],
    blocks: list[Value],
    *,
    paired: bool,
) -> Totals:
    """One step of depth: totals [rows][blocks] plus the outer product of what `rows` and `blocks` point at."""
    columns = [load(builder, block, INTS if paired else FLOATS) for block in blocks]
    sums = []
    for row, line in zip(rows, totals, strict=True):
        left = broadcast(builder, load(builder, row, INT32 if paired else FLOAT))
        if paired:
            sums.append([_pair_dot(builder, total, left, right) for total, right in zip(line, columns, strict=True)])
        else:
            sums.append([fused_multiply_add(builder, left, right, t) for t, right in zip(line, columns, strict=True)])
    return sums


def _in_tiles(
    name: str,
    count: int,
    tile: Callable[[int], Callable[[ir.Function], None]],
    places: tuple[int, int],
    only_last: int | None = None,
) -> Any:
    """A numba intrinsic `(rows, *arguments)`, rows at least 1, that goes down any number of rows in tiles of at most 6.

    tile(n): emits the body of a tile of n rows over `count` arguments. places: where among these the left and the out
    address stand; each has its stride behind it. only_last: which of them is 0 for all tiles but the last.
    """

    def write(function: ir.Function) -> None:
        rows, *arguments = function.args
        tiles = [defined(function.module, f"{name}_{n}", count, tile(n)) for n in range(1, TALLEST + 1)]
        entry, loop, after, end = (function.append_basic_block(part) for part in ("entry", "loop", "after", "end"))
        builder = ir.IRBuilder(entry)
        builder.branch(loop)
        builder.position_at_end(loop)
        left, *moving = (builder.phi(INT64) for _ in range(3))
        for phi, start in zip((left, *moving), (rows, *(arguments[place] for place in places)), strict=True):
            phi.add_incoming(start, entry)
        # A single last row costs a whole pass over the columns: 7 rows are cut into 4 and 3.
        most = builder.select(builder.icmp_signed(">", left, integer(TALLEST)), integer(TALLEST), left)
        height = builder.select(builder.icmp_signed("==", left, integer(7)), integer(4), most)
        last = builder.icmp_signed("==", height, left)
        choice = builder.switch(height, after)
        for n, target in enumerate(tiles, 1):
            block = function.append_basic_block(f"tile_{n}")
            choice.add_case(integer(n), block)
            given: list[Any] = list(arguments)
            for place, phi in zip(places, moving, strict=True):
                given[place] = phi
            inside = ir.IRBuilder(block)
            if only_last is not None:
                given[only_last] = inside.select(last, arguments[only_last], integer(0))
            inside.call(target, given)
            inside.branch(after)
        builder.position_at_end(after)
        rest = builder.sub(left, height)
        left.add_incoming(rest, after)
        for place, phi in zip(places, moving, strict=True):
            phi.add_incoming(builder.add(phi, builder.mul(height, arguments[place + 1])), after)
        builder.cbranch(builder.icmp_signed(">", rest, integer(0)), loop, end)
        ir.IRBuilder(end).ret_void()

    return as_intrinsic(name, 1 + count, write)


def product_rows(blocks: int, *, rounded: bool) -> Any:
    """Numba intrinsic `(rows, paired, left, left_stride, steps, start, out, out_stride, ahead, block_0, ..)`.

    Writes out[row][block * 16 ..] = start[block * 16 ..] + sum over steps of left[row] x block. Elements are pairs of
    bfloat16 where `paired`, else float32; `steps` counts depth in pairs or values; strides are bytes; `start` addresses
    float32 (a bias, or zeros); out is float32, or bfloat16 where `rounded` and `paired`. Beside the last rows it asks
    for the memory `ahead` bytes behind the blocks, so that it comes while the processor multiplies; 0 asks for none.
    """
    name = f"product_{blocks}_{'rounded' if rounded else 'plain'}"
    return _in_tiles(name, 8 + blocks, lambda rows: _product_tile(rows, blocks, rounded=rounded), (1, 5), only_last=7)


def _product_tile(rows: int, blocks: int, *, rounded: bool) -> Callable[[ir.Function], None]:
    def write(function: ir.Function) -> None:
        paired, left, left_stride, steps, start, out, out_stride, ahead, *packed = function.args

        def body(builder: ir.IRBuilder, halves: bool) -> None:
            starts = [load(builder, offset_by(builder, start, block * VECTOR_BYTES), FLOATS) for block in range(blocks)]

            def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                place = builder.add(left, builder.mul(index, integer(4)))
                lines = [row_address(builder, place, left_stride, row) for row in range(rows)]
                advance = builder.mul(index, integer(VECTOR_BYTES))
                columns = [builder.add(block, advance) for block in packed]
                for column in columns:
                    prefetch(builder, builder.add(column, ahead))
                return _product_step(builder, totals, lines, columns, paired=halves)

            totals = counted_loop(function, builder, steps, [list(starts) for _ in range(rows)], step)
            width = (2 if rounded and halves else 4) * LANES
            for row, line in enumerate(totals):
                place = row_address(builder, out, out_stride, row)
                for block, total in enumerate(line):
                    value = rounded_to_halves(builder, total) if rounded and halves else total
                    store(builder, value, offset_by(builder, place, block * width), align=2)
            builder.ret_void()

        both_kinds(function, paired, body)

    return write


def _coded_steps(builder: ir.IRBuilder, totals: Totals, rows: list[Value], blocks: list[Value], *, fp8: bool) -> Totals:
    """Two steps of depth over columns that are codes: rows point at two pairs each, blocks at 64 codes each."""
    columns = [steps_of(builder, load(builder, block, CODES, align=1), fp8=fp8) for block in blocks]
    for half in (0, 1):
        lefts = [broadcast(builder, load(builder, offset_by(builder, row, half * 4), INT32)) for row in rows]
        totals = [
            [_pair_dot(builder, total, left, column[half]) for total, column in zip(line, columns, strict=True)]
            for left, line in zip(lefts, totals, strict=True)
        ]
    return totals


def product_codes(blocks: int) -> Any:
    """Numba intrinsic `(rows, fp8, left, left_stride, steps, out, out_stride, block_0, .., next_0, ..)`.

    Writes out[row][block * 16 ..] float32 = sum over steps of left[row] x block, where rows are bfloat16 and blocks
    codes: e4m3 where `fp8`, else int8. `steps` counts pairs and is even. Worth it for one tile of rows: each tile
    widens the codes anew. Meanwhile it asks for the memory of the next blocks, line by line: all at once they would
    fill the queue of what the memory still owes.
    """

    def tile(rows: int) -> Callable[[ir.Function], None]:
        def write(function: ir.Function) -> None:
            fp8, left, left_stride, steps, out, out_stride, *places = function.args
            packed, following = places[:blocks], places[blocks:]

            def body(builder: ir.IRBuilder, floating: bool) -> None:
                def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                    place = builder.add(left, builder.mul(index, integer(8)))
                    lines = [row_address(builder, place, left_stride, row) for row in range(rows)]
                    advance = builder.mul(index, integer(GROUP))
                    columns = [builder.add(block, advance) for block in packed]
                    for block in following:
                        prefetch(builder, builder.add(block, advance))
                    return _coded_steps(builder, totals, lines, columns, fp8=floating)

                zero = ir.Constant(FLOATS, [0.0] * LANES)
                count = builder.lshr(steps, integer(1))
                totals = counted_loop(function, builder, count, [[zero] * blocks for _ in range(rows)], step)
                for row, line in enumerate(totals):
                    place = row_address(builder, out, out_stride, row)
                    for block, total in enumerate(line):
                        store(builder, total, offset_by(builder, place, block * VECTOR_BYTES))
                builder.ret_void()

            both_kinds(function, fp8, body)

        return write

    return _in_tiles(f"product_codes_{blocks}", 6 + 2 * blocks, tile, (1, 4))


def gather_codes(blocks: int) -> Any:
    """As `gather_rows`, over blocks of codes, with `fp8` in the place of `paired`; left is bfloat16, `steps` even.

    A last argument addresses `count` addresses more, where the next pages begin: these are asked for meanwhile.
    """
    return _in_tiles(f"gather_codes_{blocks}", 11, lambda rows: _gather_tile(rows, blocks, coded=True), (1, 8))


def gather_rows(blocks: int) -> Any:
    """Numba intrinsic `(rows, paired, left, left_stride, pages, count, offset, steps, block_stride, out, out_stride)`.

    Adds to out [rows][blocks * 16] float32 the product of left [rows][count * steps] with packed blocks that lie
    in pages: `pages` addresses `count` page addresses (int64), and block b of a page begins
    `offset + b * block_stride` bytes into it. `steps` per page counts values, or pairs where `paired`.
    """
    return _in_tiles(f"gather_{blocks}", 10, lambda rows: _gather_tile(rows, blocks), (1, 8))


def _gather_tile(rows: int, blocks: int, *, coded: bool = False) -> Callable[[ir.Function], None]:
    def write(function: ir.Function) -> None:
        kind, left, left_stride, pages, count, offset, steps, block_stride, out, out_stride = function.args[:10]

        # Of codes, two steps are taken at once.
        taken, size = (2, GROUP) if coded else (1, VECTOR_BYTES)

        def body(builder: ir.IRBuilder, of_first_kind: bool) -> None:
            places = [
                [
                    offset_by(builder, row_address(builder, out, out_stride, row), block * VECTOR_BYTES)
                    for block in range(blocks)
                ]
                for row in range(rows)
            ]

            def page_step(builder: ir.IRBuilder, page: Value, totals: Totals) -> Totals:
                place = builder.mul(page, integer(8))
                base = builder.add(load(builder, builder.add(pages, place), INT64, 8), offset)
                following = load(builder, builder.add(function.args[10], place), INT64, 8) if coded else None
                first = builder.mul(page, steps)

                def step(builder: ir.IRBuilder, index: Value, totals: Totals) -> Totals:
                    done = builder.add(first, builder.mul(index, integer(taken)))
                    place = builder.add(left, builder.mul(done, integer(4)))
                    lines = [row_address(builder, place, left_stride, row) for row in range(rows)]
                    line = builder.add(base, builder.mul(index, integer(size)))
                    columns = [row_address(builder, line, block_stride, block) for block in range(blocks)]
                    if following is not None:
                        next_line = builder.add(builder.add(following, offset), builder.mul(index, integer(size)))
                        for block in range(blocks):
                            prefetch(builder, row_address(builder, next_line, block_stride, block))
                    if coded:
                        return _coded_steps(builder, totals, lines, columns, fp8=of_first_kind)
                    return _product_step(builder, totals, lines, columns, paired=of_first_kind)

                return counted_loop(function, builder, builder.udiv(steps, integer(taken)), totals, step)

            starts = [[load(builder, place, FLOATS) for place in line] for line in places]
            totals = counted_loop(function, builder, count, starts, page_step)
            for line, ends in zip(places, totals, strict=True):
                for place, total in zip(line, ends, strict=True):
                    store(builder, total, place)
            builder.ret_void()

        both_kinds(function, kind, body)

    return write
