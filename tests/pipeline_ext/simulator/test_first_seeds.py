"""The first half of the 2,000 seeds, in a file of their own so that two processes share them."""

from __future__ import annotations

import pytest

from tests.pipeline_ext.simulator.seeds import failures


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_faults_change_no_answer(first: int):
    assert failures(range(first, first + 250)) == []
