"""Pairs by expert, and blocks of them, as the device makes them, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fakes.interpreted import require_interpreter


def choices(tokens: int, active: int, experts: int) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(experts, (tokens, active), generator=generator)


@pytest.mark.parametrize(
    ("tokens", "active", "first", "here", "total"),
    [(1, 1, 0, 5, 5), (9, 3, 2, 2, 5), (70, 2, 0, 1, 1), (70, 2, 20, 40, 70), (700, 3, 2, 4, 9)],
)
@pytest.mark.parametrize("rows", [16, 64])
def test_groups_equal_the_reference(tokens: int, active: int, first: int, here: int, total: int, rows: int) -> None:
    require_interpreter()
    from quant.triton.expert_groups import group_pairs, groups_reference

    index = choices(tokens, active, total)
    found, wanted = group_pairs(index, first, here, rows), groups_reference(index, first, here, rows)
    count = wanted.blocks.shape[1]
    assert torch.equal(found.order[: wanted.order.shape[0]], wanted.order)
    assert torch.equal(found.blocks[:, :count], wanted.blocks)
    assert not found.blocks[2, count:].any()


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_most_blocks_are_reached_and_never_passed(rows: int) -> None:
    require_interpreter()
    from quant.triton.expert_groups import groups_reference, most_blocks

    for pairs in range(1, 30):
        for experts in range(1, 5):
            spread = torch.arange(pairs).clamp(max=experts - 1)[:, None]  # one pair each, and the rest to the last
            blocks = groups_reference(spread, 0, experts, rows).blocks.shape[1]
            assert blocks == most_blocks(pairs, experts, rows)
            even = (torch.arange(pairs) % experts)[:, None]
            assert groups_reference(even, 0, experts, rows).blocks.shape[1] <= most_blocks(pairs, experts, rows)
