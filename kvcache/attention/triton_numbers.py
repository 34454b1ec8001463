"""Numbers inside Triton kernels: stored K and V made wide for products, made narrow for pages, and a tanh.

All of it runs on every architecture and under the interpreter; only `NATIVE` fp8 asks for hardware that has the type.
"""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def widen(stored, FORMAT: tl.constexpr, NATIVE: tl.constexpr, TYPE: tl.constexpr):
    """Stored elements as TYPE, without their scale: exact for int8 and fp8 in all three types of models.

    fp8 comes as its bytes. Without NATIVE it is shifted into a float16 with too small an exponent; its NaN becomes 480,
    which does not matter, because the scale of such a row is not finite.
    """
    if FORMAT == "fp8":
        if NATIVE:
            wide = stored.to(tl.float8e4nv, bitcast=True).to(TYPE)
        else:
            bits = stored.to(tl.uint16)
            shifted = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
            wide = (shifted.to(tl.float16, bitcast=True) * 256.0).to(TYPE)
    elif FORMAT == "int8":
        # The interpreter knows no direct way from integers to bfloat16.
        wide = stored.to(tl.float32).to(TYPE)
    else:
        wide = stored.to(TYPE)
    return wide


@triton.jit
def as_float32(x):
    """Exact, also for a bfloat16 below the smallest normal, of which the interpreter makes something else."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def poisoned(scale):
    """A scale as float32, where an infinite one becomes NaN: a row that was not finite must show, whatever it meets."""
    wide = as_float32(scale)
    return wide + (wide - wide)


@triton.jit
def tanh(x):
    """1 - 2 / (e^2x + 1), without overflow on either side."""
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2_E)) + 1.0)


@triton.jit
def scale_of(x, LARGEST: tl.constexpr):
    """The scale of each row of x [rows, size], as float32 that a bfloat16 holds: `quant.kv.scale`, bit for bit.

    The maximum is taken over the bits of |x|, as integers, where NaN is above infinity and infinity above all else.
    """
    largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    peak = tl.div_rn(largest.to(tl.float32, bitcast=True), tl.full(largest.shape, LARGEST, tl.float32))
    bits = peak.to(tl.int32, bitcast=True)
    rounded = (((bits + 0xFFFF) >> 16) << 16).to(tl.float32, bitcast=True)
    kept = tl.where(largest < 0x7F800000, rounded, peak)
    return tl.where(kept == 0.0, 1.0, kept)


@triton.jit
def int8_levels(x):
    """float32 -> int8, to nearest even within -127 to 127; NaN becomes 0."""
    number = tl.where(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF > 0x7F800000, 0.0, x)
    bounded = tl.minimum(tl.maximum(number, -127.0), 127.0)
    # Adding 1.5 * 2^23 leaves no bits below the unit, and the addition rounds to nearest even.
    return ((bounded + 12582912.0) - 12582912.0).to(tl.int32).to(tl.int8)


@triton.jit
def fp8_levels(x):
    """float32 -> the byte of e4m3, to nearest even: the rounding of PyTorch's c10/util/Float8_e4m3fn.h (BSD-3-Clause).

    Numbers below the smallest normal are rounded by an addition in float32, the others by an integer one.
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    small = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    odd = (magnitude >> 20) & 1
    normal = (magnitude - (120 << 23) + 0x7FFFF + odd) >> 20
    level = tl.where(magnitude < (121 << 23), small, normal)
    level = tl.where(magnitude < (1087 << 20), level, 0x7F)
    return (level | ((bits >> 24) & 0x80)).to(tl.uint8)
