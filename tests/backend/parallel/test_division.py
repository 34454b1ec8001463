"""Divisions: every unit is somebody's, nobody has none, and parts follow their weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.parallel.division import divide, divide_heads

WEIGHTS = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8)


@given(st.integers(1, 4000), WEIGHTS, st.sampled_from([1, 16, 64]))
def test_parts_cover_the_whole_and_none_is_empty(total: int, weights: list[float], multiple: int) -> None:
    if total < len(weights):
        with pytest.raises(ValueError, match="cannot be divided"):
            divide(total, weights, multiple)
        return
    parts = divide(total, weights, multiple)
    assert [index for part in parts for index in part] == list(range(total))
    assert all(parts)
    assert len(parts) == len(weights)


@pytest.mark.parametrize(
    ("total", "weights", "multiple", "sizes"),
    [
        (1536, [1, 1], 64, [768, 768]),
        (1536, [1, 1, 1], 64, [512, 512, 512]),
        (1536, [1, 2], 64, [512, 1024]),
        (8, [1, 1, 1], 1, [3, 3, 2]),
        (8, [1] * 5, 1, [2, 2, 2, 1, 1]),
        (8, [1] * 7, 1, [2, 1, 1, 1, 1, 1, 1]),
        (100, [1, 1], 64, [64, 36]),
        (49155, [1, 1], 64, [24576, 24579]),
    ],
)
def test_parts_follow_their_weights(total: int, weights: list[float], multiple: int, sizes: list[int]) -> None:
    parts = divide(total, weights, multiple)
    assert sum(len(part) for part in parts) == total
    unit = max(1, min(multiple, total // (2 * len(weights))))
    assert all(abs(len(part) - size) <= unit for part, size in zip(parts, sizes, strict=True))


@given(st.integers(1, 16), st.integers(1, 8), WEIGHTS)
def test_heads_go_in_whole_groups_while_there_are_enough(kv_heads: int, group: int, weights: list[float]) -> None:
    heads = kv_heads * group
    if len(weights) > kv_heads:
        return
    shares = divide_heads(heads, kv_heads, weights)
    assert [head for share in shares for head in share.heads] == list(range(heads))
    assert [head for share in shares for head in share.kv_heads] == list(range(kv_heads))
    assert all(len(share.heads) == group * len(share.kv_heads) for share in shares)


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(9, 3, 4), (9, 3, 9), (8, 1, 3), (8, 2, 7), (32, 8, 16)])
def test_kv_heads_are_replicated_only_where_ranks_outnumber_them(heads: int, kv_heads: int, ranks: int) -> None:
    shares = divide_heads(heads, kv_heads, [1.0] * ranks)
    assert [head for share in shares for head in share.heads] == list(range(heads))
    assert {head for share in shares for head in share.kv_heads} == set(range(kv_heads))
    group = heads // kv_heads
    assert all(len(share.kv_heads) == 1 for share in shares)
    assert all(head // group == share.kv_heads.start for share in shares for head in share.heads)


def test_more_ranks_than_query_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="4 query heads"):
        divide_heads(4, 2, [1.0] * 5)
