"""Block sizes as data: every architecture, type and load has a line, and lines are what kernels can take."""

from __future__ import annotations

import itertools

import pytest

from quant.triton.expert_configuration import expert_configuration, loads


@pytest.mark.parametrize(("architecture", "size"), [*itertools.product(("sm_90", "sm_89", "sm_80", "sm_120"), (2, 4))])
def test_every_load_has_a_configuration(architecture: str, size: int) -> None:
    found = [expert_configuration(architecture, size, load) for load in loads(architecture, size)]
    for one in found:
        for number in (one.rows, one.up.columns, one.up.depth, one.down.columns, one.down.depth):
            assert number >= 16
            assert number & (number - 1) == 0
        assert {one.up.warps, one.down.warps} <= {4, 8}
        assert min(one.up.stages, one.down.stages) >= 1
    # How a sum is cut must not depend on the batch.
    assert len({(one.up.depth, one.down.depth) for one in found}) == 1
    assert [one.rows for one in found] == sorted(one.rows for one in found)


def test_the_load_chooses() -> None:
    few, many = expert_configuration("sm_90", 2, 0.5), expert_configuration("sm_90", 2, 10_000)
    assert few.rows < many.rows
    assert expert_configuration("sm_90", 2, 10**12) == many
