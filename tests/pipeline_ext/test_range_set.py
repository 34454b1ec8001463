"""Ranges of bytes, against sets of single bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline_ext.range_set import RangeSet

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def _bytes(found: RangeSet) -> set[int]:
    return {byte for first, stop in found for byte in range(first, stop)}


def _plain(given_ranges: list[tuple[int, int]]) -> set[int]:
    return {byte for first, stop in given_ranges for byte in range(first, stop)}


@given(ranges, ranges, st.integers(1, 7))
def test_ranges_are_sets_of_bytes(one: list[tuple[int, int]], other: list[tuple[int, int]], most: int) -> None:
    left = RangeSet(one).without(RangeSet(other))
    assert _bytes(left) == _plain(one) - _plain(other)
    assert left.bytes == len(_bytes(left))
    pieces = list(left.pieces(most))
    assert all(0 < stop - first <= most for first, stop in pieces)
    assert RangeSet(pieces).without(left).bytes == 0
    assert left.without(RangeSet(pieces)).bytes == 0


@given(ranges)
def test_ranges_that_touch_are_one(one: list[tuple[int, int]]) -> None:
    found = list(RangeSet(one))
    assert all(stop < first for (_, stop), (first, _) in pairwise(found))
