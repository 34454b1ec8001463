"""worth_fetching: copies against computing, and the benefit of the doubt."""

from __future__ import annotations

import pytest

from kvcache.fetch_choice import Copy, worth_fetching


@pytest.mark.parametrize(
    ("tokens", "copies", "compute_rate", "expected"),
    [
        (1000, [Copy(10_000_000, 1e9)], 10_000.0, True),  # 10 ms against 100 ms
        (1000, [Copy(10_000_000, 1e7)], 10_000.0, False),  # 1 s
        (1000, [Copy(10_000_000, 2e8), Copy(10_000_000, 1.5e8)], 10_000.0, False),  # 117 ms together
        (1000, [Copy(10_000_000, 0.0)], 10_000.0, True),  # not measured yet
        (1000, [Copy(10_000_000, 1e3)], 0.0, True),
    ],
)
def test_the_cheaper_way_is_taken(tokens: int, copies: list[Copy], compute_rate: float, expected: bool):
    assert worth_fetching(tokens, copies, compute_rate) is expected
