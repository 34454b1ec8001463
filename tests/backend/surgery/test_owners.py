"""Owners: elements are told from gradients to belong to one unit, to several, or to none."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.surgery.owners import NOTHING, owners


def leaf(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5).requires_grad_()


def units(source: Tensor, sink: Tensor, numbers: Tensor) -> list[int] | None:
    (found,) = owners(sink, numbers, [source])
    assert found is not None
    return None if found.units is None else found.units.tolist()


def test_a_view_gives_rows_to_heads() -> None:
    source = leaf(1, 3, 6)
    assert units(source, source.view(1, 3, 3, 2), torch.arange(3)[:, None]) == [0, 0, 1, 1, 2, 2]


def test_columns_are_told_beyond_a_digit() -> None:
    source = leaf(1, 3, 1400)
    gate, up = source.chunk(2, dim=-1)
    expected = [*range(700), *range(700)]
    assert units(source, torch.nn.functional.silu(gate) * up, torch.arange(700)) == expected
    gate, up = source[..., ::2], source[..., 1::2]
    assert units(source, torch.relu(gate) * up, torch.arange(700)) == [row // 2 for row in range(1400)]


def test_a_rotation_stays_within_its_head() -> None:
    source, angles = leaf(1, 3, 16), leaf(1, 3, 1, 4).detach()
    heads = source.view(1, 3, 2, 8)
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1)
    assert units(source, turned, torch.arange(2)[:, None]) == [0] * 8 + [1] * 8


def test_a_norm_over_everything_mixes() -> None:
    source = leaf(1, 3, 6)
    normed = torch.nn.functional.rms_norm(source, (6,)).view(1, 3, 3, 2)
    assert units(source, normed, torch.arange(3)[:, None]) is None


def test_what_does_not_flow_is_told_apart() -> None:
    source, other = leaf(1, 3, 6), leaf(1, 3, 6)
    assert owners(source[..., :4] * 2, torch.arange(4), [other]) == [None]
    assert units(source, source[..., :4] * 2, torch.arange(4)) == [0, 1, 2, 3, NOTHING, NOTHING]


def test_a_parameter_of_all_heads_mixes_and_one_of_each_does_not() -> None:
    shared, own, source = leaf(4), leaf(8), leaf(1, 3, 8)
    heads = source.view(1, 3, 2, 4)
    assert units(shared, heads * shared, torch.arange(2)[:, None]) is None
    assert units(own, heads * own.view(2, 4), torch.arange(2)[:, None]) == [0] * 4 + [1] * 4
