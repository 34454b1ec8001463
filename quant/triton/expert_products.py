"""The Triton kernels of a mixture's experts: their first products with the gate, their second, and tokens' sums."""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def activated(gate, up, alpha, limit, offset, ACTIVATION: tl.constexpr):
    """`expert_gate.Gate` in float32."""
    if limit is not None:
        # As torch's clamp, a NaN stays one.
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    if ACTIVATION == "swish":
        gate = gate * sigmoid(gate * alpha)
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    else:
        # (1 + tanh(u)) / 2 is sigmoid(2u).
        gate = gate * sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return gate * (up + offset)


@triton.jit
def load_tile(pointers, depths, inside, DEPTH: tl.constexpr, EVEN_DEPTH: tl.constexpr, EVEN_COLUMNS: tl.constexpr):
    """A weight's tile [BLOCK_K, columns], zeros past its edges. pointers: at `depths`; inside: [columns]."""
    if EVEN_DEPTH and EVEN_COLUMNS:
        return tl.load(pointers)
    elif EVEN_DEPTH:
        return tl.load(pointers, mask=inside[None, :], other=0.0)
    else:
        return tl.load(pointers, mask=(depths < DEPTH)[:, None] & inside[None, :], other=0.0)


@triton.jit
def multiply(
    rows, weight, columns, inside, weight_column, weight_depth,
    DEPTH: tl.constexpr, EVEN_COLUMNS: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows by pointers [BLOCK_M], times columns [BLOCK_N] of a weight: float32 [BLOCK_M, BLOCK_N]."""
    even: tl.constexpr = DEPTH % BLOCK_K == 0
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    column_pointers = weight + columns.to(tl.int64) * weight_column
    for begin in range(0, DEPTH, BLOCK_K):
        depths = begin + tl.arange(0, BLOCK_K)
        if even:
            x = tl.load(rows[:, None] + depths[None, :])
        else:
            x = tl.load(rows[:, None] + depths[None, :], mask=(depths < DEPTH)[None, :], other=0.0)
        pointers = column_pointers[None, :] + (depths.to(tl.int64) * weight_depth)[:, None]
        w = load_tile(pointers, depths, inside, DEPTH, even, EVEN_COLUMNS)
        sums = tl.dot(x.to(TYPE), w.to(TYPE), acc=sums, input_precision="ieee")
    return sums


@triton.jit
def multiply_two(
    rows, weight, columns, inside, weight_column, weight_depth,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EVEN_COLUMNS: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The same for two groups of columns, the second COLUMNS after the first: rows are read once for both."""
    even: tl.constexpr = DEPTH % BLOCK_K == 0
    gates = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    ups = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    column_pointers = weight + columns.to(tl.int64) * weight_column
    distance = COLUMNS * weight_column
    for begin in range(0, DEPTH, BLOCK_K):
        depths = begin + tl.arange(0, BLOCK_K)
        if even:
            x = tl.load(rows[:, None] + depths[None, :])
        else:
            x = tl.load(rows[:, None] + depths[None, :], mask=(depths < DEPTH)[None, :], other=0.0)
        pointers = column_pointers[None, :] + (depths.to(tl.int64) * weight_depth)[:, None]
        gate = load_tile(pointers, depths, inside, DEPTH, even, EVEN_COLUMNS)
        up = load_tile(pointers + distance, depths, inside, DEPTH, even, EVEN_COLUMNS)
        gates = tl.dot(x.to(TYPE), gate.to(TYPE), acc=gates, input_precision="ieee")
        ups = tl.dot(x.to(TYPE), up.to(TYPE), acc=ups, input_precision="ieee")
    return gates, ups


@triton.jit
def add_bias(sums, bias, columns, inside):
    """bias: of the program's expert, or None."""
    if bias is not None:
        sums += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    return sums


@triton.jit(do_not_specialize=["most"])
def up_kernel(
    x, x_row, order, blocks, most, weight, weight_expert, weight_column, weight_depth, bias, bias_expert, inner,
    alpha, limit, offset,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, ACTIVE: tl.constexpr, LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr,
    TYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """inner [pairs, COLUMNS], in the order of groups: what an expert's first product gives for its tokens' rows of x.

    LAYOUT: "plain" stores the product itself; "halves" and "pairs" hold gates and ups of COLUMNS columns, one after
    the other or in turn, and store what the activation makes of them. Grid: (blocks, blocks of columns).
    """
    block = tl.program_id(0)
    count = tl.load(blocks + 2 * most + block)
    if count == 0:
        return
    expert = tl.load(blocks + block).to(tl.int64)
    numbers = tl.arange(0, BLOCK_M)
    valid = numbers < count
    places = tl.load(blocks + most + block) + numbers
    token = tl.load(order + places, mask=valid, other=0) // ACTIVE
    rows = x + token.to(tl.int64) * x_row
    weight += expert * weight_expert
    if bias is not None:
        bias += expert * bias_expert
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    even: tl.constexpr = COLUMNS % BLOCK_N == 0
    if LAYOUT == "pairs":
        both = tl.program_id(1) * (2 * BLOCK_N) + tl.arange(0, 2 * BLOCK_N)
        sums = multiply(
            rows, weight, both, both < 2 * COLUMNS, weight_column, weight_depth, DEPTH, even, TYPE, BLOCK_M,
            2 * BLOCK_N, BLOCK_K,
        )  # fmt: skip
        sums = add_bias(sums, bias, both, both < 2 * COLUMNS)
        gates, ups = tl.split(tl.reshape(sums, (BLOCK_M, BLOCK_N, 2)))
        result = activated(gates, ups, alpha, limit, offset, ACTIVATION)
    elif LAYOUT == "halves":
        gates, ups = multiply_two(
            rows, weight, columns, columns < COLUMNS, weight_column, weight_depth, COLUMNS, DEPTH, even, TYPE, BLOCK_M,
            BLOCK_N, BLOCK_K,
        )  # fmt: skip
        gates = add_bias(gates, bias, columns, columns < COLUMNS)
        ups = add_bias(ups, bias, columns + COLUMNS, columns < COLUMNS)
        result = activated(gates, ups, alpha, limit, offset, ACTIVATION)
    else:
        result = multiply(
            rows, weight, columns, columns < COLUMNS, weight_column, weight_depth, DEPTH, even, TYPE, BLOCK_M, BLOCK_N,
            BLOCK_K,
        )  # fmt: skip
        result = add_bias(result, bias, columns, columns < COLUMNS)
    target = inner + places.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    tl.store(target, result.to(inner.dtype.element_ty), mask=valid[:, None] & (columns < COLUMNS)[None, :])


@triton.jit(do_not_specialize=["most"])
def down_kernel(
    inner, order, blocks, most, weight, weight_expert, weight_column, weight_depth, bias, bias_expert, shares, outputs,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """outputs [pairs, COLUMNS], by number of pair: the second product of inner [pairs, DEPTH], times its pair's share.

    shares: [pairs] or None. Pairs that lie elsewhere are left as they are. Grid: (blocks, blocks of columns).
    """
    block = tl.program_id(0)
    count = tl.load(blocks + 2 * most + block)
    if count == 0:
        return
    expert = tl.load(blocks + block).to(tl.int64)
    numbers = tl.arange(0, BLOCK_M)
    valid = numbers < count
    first = tl.load(blocks + most + block)
    pair = tl.load(order + first + numbers, mask=valid, other=0)
    # Rows past the last repeat it: what they give is not stored.
    rows = inner + (first + tl.minimum(numbers, count - 1)).to(tl.int64) * DEPTH
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < COLUMNS
    even: tl.constexpr = COLUMNS % BLOCK_N == 0
    weight += expert * weight_expert
    result = multiply(
        rows, weight, columns, inside, weight_column, weight_depth, DEPTH, even, TYPE, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if bias is not None:
        result = add_bias(result, bias + expert * bias_expert, columns, inside)
    if shares is not None:
        result = result * tl.load(shares + pair, mask=valid, other=0.0).to(tl.float32)[:, None]
    target = outputs + pair.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    tl.store(target, result.to(outputs.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["first"])
def sum_kernel(
    outputs, index, out, first,
    EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, ACTIVE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out [T, COLUMNS]: a token's pairs that lie here, added in the order of its own choices, in float32.

    Grid: (tokens, blocks of columns).
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < COLUMNS
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for choice in range(ACTIVE):
        pair = token * ACTIVE + choice
        local = tl.load(index + pair).to(tl.int32) - first
        if (local >= 0) & (local < EXPERTS):
            sums += tl.load(outputs + pair * COLUMNS + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * COLUMNS + columns, sums.to(out.dtype.element_ty), mask=inside)
