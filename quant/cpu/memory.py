"""Numba intrinsics for memory: typed pointers at an address, bits of a float, words that threads or processes share."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from quant.cpu.instructions import FLOAT, INT32, INT64, Value, integer, with_parameters


def _builtin(result: Any, count: int, emit_body: Any) -> Any:
    """A numba intrinsic over `count` integers; `emit_body(builder, values)` returns its result, or None for void."""

    def typing(context: Any, *arguments: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            answer = emit_body(builder, values)
            return context.get_dummy_value() if answer is None else answer

        return result(*[types.intp] * count), emit

    return with_parameters(typing, count)


def _place(builder: ir.IRBuilder, address: Value) -> Value:
    return builder.inttoptr(address, INT64.as_pointer())


def _load_shared(builder: ir.IRBuilder, values: Any) -> Value:
    return builder.load_atomic(_place(builder, values[0]), "seq_cst", 8)


def _store_shared(builder: ir.IRBuilder, values: Any) -> None:
    builder.store_atomic(values[1], _place(builder, values[0]), "seq_cst", 8)


def _add_shared(builder: ir.IRBuilder, values: Any) -> Value:
    return builder.atomic_rmw("add", _place(builder, values[0]), values[1], "seq_cst")


def _pause(builder: ir.IRBuilder, values: Any) -> None:
    hint = "pause" if platform.machine() in ("x86_64", "AMD64") else "yield"
    builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), hint, "", side_effect=True), [])


def _call_item(builder: ir.IRBuilder, values: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [INT64] * 3)
    builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])


def _system_call(builder: ir.IRBuilder, arguments: list[Value]) -> None:
    function = builder.module.globals.get("syscall")
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(INT64, [INT64], var_arg=True), "syscall")
    builder.call(function, arguments)


def _sleep_on(builder: ir.IRBuilder, values: Any) -> None:
    # The kernel compares 32 bits, the low half of the word on little-endian machines.
    low = builder.and_(values[1], integer(0xFFFFFFFF))
    none = integer(0)
    _system_call(builder, [integer(_FUTEX_NUMBER), values[0], integer(_WAIT_PRIVATE), low, none, none, none])


def _wake_all(builder: ir.IRBuilder, values: Any) -> None:
    none = integer(0)
    _system_call(
        builder, [integer(_FUTEX_NUMBER), values[0], integer(_WAKE_PRIVATE), integer(0x7FFFFFFF), none, none, none]
    )


def _sleep_between(builder: ir.IRBuilder, values: Any) -> None:
    low = builder.and_(values[1], integer(0xFFFFFFFF))
    none = integer(0)
    _system_call(builder, [integer(_FUTEX_NUMBER), values[0], integer(_WAIT), low, values[2], none, none])


def _wake_between(builder: ir.IRBuilder, values: Any) -> None:
    none = integer(0)
    _system_call(builder, [integer(_FUTEX_NUMBER), values[0], integer(_WAKE), integer(0x7FFFFFFF), none, none, none])


def _look_at_files(builder: ir.IRBuilder, values: Any) -> None:
    none = integer(0)
    _system_call(builder, [integer(_POLL_NUMBER), values[0], values[1], values[2], none, none])


def _read_clock(builder: ir.IRBuilder, values: Any) -> Value:
    function = builder.module.globals.get("clock_gettime")
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(INT32, [INT32, INT64]), "clock_gettime")
    builder.call(function, [INT32(_MONOTONIC), values[0]])
    seconds, rest = (builder.load(_place(builder, builder.add(values[0], integer(part)))) for part in (0, 8))
    return builder.add(builder.mul(seconds, integer(1_000_000_000)), rest)


def _yield_core(builder: ir.IRBuilder, values: Any) -> None:
    function = builder.module.globals.get("sched_yield")
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(INT32, []), "sched_yield")
    builder.call(function, [])


# futex(2) and ppoll(2) on Linux: the calls' numbers by processor, and futex's operations for threads of one process
# and for processes that share memory.
_FUTEX_NUMBER, _POLL_NUMBER = (202, 271) if platform.machine() in ("x86_64", "AMD64") else (98, 73)
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_WAIT, _WAKE = 0, 1
_MONOTONIC = 1

# (address) -> the word there; (address, value); (address, increment) -> the word before. In one order for all threads.
load_shared = _builtin(types.int64, 1, _load_shared)
store_shared = _builtin(types.void, 2, _store_shared)
add_shared = _builtin(types.int64, 2, _add_shared)
# () tells the processor that this is a waiting loop; () lets another thread have the core.
pause = _builtin(types.void, 0, _pause)
yield_core = _builtin(types.void, 0, _yield_core)
# (address, value): sleeps while the word there has this value; (address): wakes all who sleep there.
sleep_on = _builtin(types.void, 2, _sleep_on)
wake_all = _builtin(types.void, 1, _wake_all)
# The same two for words in memory that processes share; (address, value, timespec address): not longer than that.
sleep_between = _builtin(types.void, 3, _sleep_between)
wake_between = _builtin(types.void, 1, _wake_between)
# (pollfd address, count, timespec address): fills in what happened to these files, after at most that time.
look_at_files = _builtin(types.void, 3, _look_at_files)
# (address of two words to write) -> nanoseconds of the clock that never jumps.
read_clock = _builtin(types.int64, 1, _read_clock)
# (function address, arguments address, item, thread): calls a cfunc.
call_item = _builtin(types.void, 4, _call_item)


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
bytes_at = _pointer(types.uint8)
floats_at = _pointer(types.float32)
halves_at = _pointer(types.uint16)
integers_at = _pointer(types.int64)
short_integers_at = _pointer(types.int32)
