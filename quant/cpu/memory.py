"""Numba intrinsics for memory: typed pointers at an address, bits of a float, and a counter that threads share."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from quant.cpu.instructions import FLOAT, INT32, INT64, integer


@intrinsic
def next_index(context: Any, address: Any) -> Any:
    """Takes the next number off the shared int64 counter at `address`: threads that finish early take more work."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], INT64.as_pointer())
        return builder.atomic_rmw("add", place, integer(1), "monotonic")

    return types.int64(types.intp), emit


def _bits(source: Any, target: Any, kind: ir.Type) -> Any:
    def typing(context: Any, value: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            return builder.bitcast(values[0], kind)

        return target(source), emit

    return intrinsic(typing)


float_of_bits = _bits(types.int32, types.float32, FLOAT)
bits_of_float = _bits(types.float32, types.int32, INT32)


def _pointer(element: Any) -> Any:
    def typing(context: Any, address: Any) -> Any:
        pointer = types.CPointer(element)

        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(pointer))

        return pointer(types.intp), emit

    return intrinsic(typing)


# Typed pointers at an address, for numba.carray.
floats_at = _pointer(types.float32)
halves_at = _pointer(types.uint16)
integers_at = _pointer(types.int64)
