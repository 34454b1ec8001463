"""LLVM building blocks on 16 lanes that numba's language lacks, for kernels written as intrinsics.

Everything takes raw addresses as 64-bit integers; shapes, strides and lifetimes are the callers' business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES = 16
INT32, INT64, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, INTS, HALVES = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT32, ir.IntType(16)))
VECTOR_BYTES = 4 * LANES

# Inline assembly below needs the assembler; initialising it twice is harmless.
llvm.initialize_native_asmparser()
# llvmlite leaves its builder's results untyped.
Value = Any
Totals = list[list[Value]]
PAIR_DOT = bool(llvm.get_host_cpu_features().get("avx512bf16", False))


def integer(value: int) -> ir.Constant:
    return ir.Constant(INT64, value)


def constant(value: float) -> ir.Constant:
    return ir.Constant(FLOATS, [value] * LANES)


def load(builder: ir.IRBuilder, address: Value, kind: ir.Type, align: int = 4) -> Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def store(builder: ir.IRBuilder, value: Value, address: Value, align: int = 4) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def broadcast(builder: ir.IRBuilder, scalar: Value) -> Value:
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(INTS, [0] * LANES))


def fused_multiply_add(builder: ir.IRBuilder, left: Value, right: Value, total: Value) -> Value:
    name = f"llvm.fma.v{LANES}f32"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), name)
    return builder.call(function, [left, right, total])


def rounded_to_halves(builder: ir.IRBuilder, values: Value) -> Value:
    """float32 lanes as bfloat16, to nearest even (NaN stays NaN: its payload's top bits survive the rounding here)."""
    if PAIR_DOT:
        return builder.call(ir.InlineAsm(ir.FunctionType(HALVES, [FLOATS]), "vcvtneps2bf16 $1, $0", "=v,v"), [values])
    bits = builder.bitcast(values, INTS)
    odd = builder.and_(builder.lshr(bits, ir.Constant(INTS, [16] * LANES)), ir.Constant(INTS, [1] * LANES))
    shifted = builder.add(bits, builder.add(odd, ir.Constant(INTS, [0x7FFF] * LANES)))
    unordered = builder.fcmp_unordered("uno", values, values)
    kept = builder.select(unordered, builder.or_(bits, ir.Constant(INTS, [0x400000] * LANES)), shifted)
    return builder.trunc(builder.lshr(kept, ir.Constant(INTS, [16] * LANES)), HALVES)


def counted_loop(
    function: ir.Function, builder: ir.IRBuilder, count: Value, totals: Totals, step: Callable[..., Any]
) -> Totals:
    """Runs `step(builder, index, totals) -> totals` count times (at least once) and returns the last totals."""
    entry = builder.block
    body, after = function.append_basic_block("body"), function.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(INT64)
    index.add_incoming(integer(0), entry)
    carried = [[builder.phi(FLOATS) for _ in line] for line in totals]
    for line, start in zip(carried, totals, strict=True):
        for phi, value in zip(line, start, strict=True):
            phi.add_incoming(value, entry)
    results = step(builder, index, carried)
    following = builder.add(index, integer(1))
    last = builder.block
    index.add_incoming(following, last)
    for line, ends in zip(carried, results, strict=True):
        for phi, value in zip(line, ends, strict=True):
            phi.add_incoming(value, last)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    return results


def prefetch(builder: ir.IRBuilder, address: Value) -> None:
    """Asks for the cache line at `address`, into the second-level cache; any address will do."""
    pointer = ir.IntType(8).as_pointer()
    function = builder.module.globals.get("llvm.prefetch.p0")
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [pointer, INT32, INT32, INT32])
        function = ir.Function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, pointer), INT32(0), INT32(2), INT32(1)])


def offset_by(builder: ir.IRBuilder, address: Value, size: int) -> Value:
    return builder.add(address, integer(size))


def row_address(builder: ir.IRBuilder, address: Value, stride: Value, index: int) -> Value:
    return builder.add(address, builder.mul(stride, integer(index)))


def defined(module: ir.Module, name: str, count: int, write: Callable[[ir.Function], None]) -> ir.Function:
    """The module's function of that name over `count` integers; `write` emits its body where the module lacks it."""
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT64] * count), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        write(function)
    return function


def as_intrinsic(name: str, count: int, write: Callable[[ir.Function], None]) -> Any:
    """A numba intrinsic over `count` integers that returns nothing; `write` emits its body once per module."""

    def typing(context: Any, *arguments: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            builder.call(defined(builder.module, name, count, write), values)
            return context.get_dummy_value()

        return types.void(*[types.intp] * count), emit

    return with_parameters(typing, count)


def with_parameters(typing: Callable[..., Any], count: int) -> Any:
    """The intrinsic of a typing function `(context, *arguments)`, of which numba is told `count` named parameters.

    (numba reads them off the signature and does not know *arguments.)
    """
    names = ["context", *(f"argument_{index}" for index in range(count))]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    typing.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return intrinsic(typing)


def both_kinds(function: ir.Function, paired: Value, write: Callable[[ir.IRBuilder, bool], None]) -> None:
    """The body for float32 and the one for pairs of bfloat16, chosen by an argument.

    The choice is made here, not by two numba functions: numba caches no function that closes over intrinsics.
    """
    entry, halves, floats = (function.append_basic_block(name) for name in ("entry", "halves", "floats"))
    builder = ir.IRBuilder(entry)
    builder.cbranch(builder.icmp_signed("!=", paired, integer(0)), halves, floats)
    write(ir.IRBuilder(halves), True)
    write(ir.IRBuilder(floats), False)
