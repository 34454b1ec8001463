"""Groups: the pairs of (token, choice) of a step, by expert, in blocks of rows; made on the device, without the host.

A block is rows of one expert: what a program multiplies. How many blocks there are is known to the device only; the
host knows the most there can be, and programs past the last block find no rows.
"""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
# pyright: reportArgumentType=false, reportOperatorIssue=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Groups:
    """order: [pairs] int32, pair numbers (token * choices + choice) by expert, in their own order within one; what
    lies elsewhere is left out, and places at the end are undefined.

    blocks: [3, most blocks] int32: each block's expert (counted from the first that lies here), the place in `order`
    where it begins, and its rows, 0 past the last block.
    """

    order: Tensor
    blocks: Tensor


def most_blocks(pairs: int, experts: int, rows: int) -> int:
    """The most blocks that so many pairs fill: one expert has few pairs in its last block, and so may all others."""
    occupied = min(pairs, experts)
    return occupied + (pairs - occupied) // rows


@triton.jit
def load_local(index, places, pairs, first, EXPERTS: tl.constexpr):
    """Each pair's expert, counted from `first`; EXPERTS for what lies elsewhere."""
    local = tl.load(index + places, mask=places < pairs, other=0).to(tl.int32) - first
    return tl.where((places < pairs) & (local >= 0) & (local < EXPERTS), local, EXPERTS)


# Numbers that change from step to step must not make a compilation of their own.
@triton.jit(do_not_specialize=["pairs", "first", "most"])
def group_kernel(
    index, order, blocks, pairs, first, most,
    EXPERTS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A program finds the pairs and blocks of one expert. Each counts all pairs for itself: nothing is waited for."""
    expert = tl.program_id(0)
    numbers = tl.arange(0, PADDED)
    counts = tl.zeros((PADDED,), tl.int32)
    for begin in range(0, pairs, CHUNK):
        counts += tl.histogram(load_local(index, begin + tl.arange(0, CHUNK), pairs, first, EXPERTS), PADDED)
    counts = tl.where(numbers < EXPERTS, counts, 0)
    tiles = (counts + ROWS - 1) // ROWS
    start = tl.sum(tl.where(numbers < expert, counts, 0), axis=0)
    own = tl.sum(tl.where(numbers == expert, counts, 0), axis=0)
    first_block = tl.sum(tl.where(numbers < expert, tiles, 0), axis=0)
    placed = start
    for begin in range(0, pairs, CHUNK):
        places = begin + tl.arange(0, CHUNK)
        mine = load_local(index, places, pairs, first, EXPERTS) == expert
        ranks = tl.cumsum(mine.to(tl.int32), axis=0)
        tl.store(order + placed + ranks - 1, places, mask=mine)
        placed += tl.sum(mine.to(tl.int32), axis=0)
    past = first_block + (own + ROWS - 1) // ROWS
    for block in range(first_block, past):
        done = (block - first_block) * ROWS
        tl.store(blocks + block, expert)
        tl.store(blocks + most + block, start + done)
        tl.store(blocks + 2 * most + block, tl.minimum(own - done, ROWS))
    if expert == EXPERTS - 1:
        for block in range(past, most):
            tl.store(blocks + 2 * most + block, 0)


def group_arguments(index: Tensor, groups: Groups, first: int, experts: int, rows: int) -> dict[str, Any]:
    """All arguments of `group_kernel` by name."""
    return {
        "index": index, "order": groups.order, "blocks": groups.blocks, "pairs": index.numel(), "first": first,
        "most": groups.blocks.shape[1], "EXPERTS": experts, "PADDED": max(16, triton.next_power_of_2(experts + 1)),
        "ROWS": rows, "CHUNK": CHUNK,
    }  # fmt: skip


def empty_groups(index: Tensor, experts: int, rows: int) -> Groups:
    pairs = index.numel()
    order = torch.empty(pairs, dtype=torch.int32, device=index.device)
    return Groups(order, order.new_empty(3, most_blocks(pairs, experts, rows)))


def group_pairs(index: Tensor, first: int, experts: int, rows: int) -> Groups:
    """index: [T, k], contiguous, the experts that tokens chose, among all; `experts` lie here, from `first` on."""
    groups = empty_groups(index, experts, rows)
    if index.numel():
        group_kernel[(experts,)](**group_arguments(index, groups, first, experts, rows))
    return groups


def groups_reference(index: Tensor, first: int, experts: int, rows: int) -> Groups:
    """The same in plain torch; unused places of `order` are not there, and blocks only those that have rows."""
    flat = index.reshape(-1)
    order, blocks = [], []
    start = 0
    for expert in range(experts):
        pairs = (flat == first + expert).nonzero()[:, 0].int()
        order.append(pairs)
        count = pairs.shape[0]
        blocks += [(expert, start + done, min(rows, count - done)) for done in range(0, count, rows)]
        start += count
    return Groups(torch.cat(order), torch.tensor(blocks, dtype=torch.int32).view(-1, 3).T)
