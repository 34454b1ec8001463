"""Launches of a step, counted from host numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcache.attention.kernel import AttentionShape, GroupStep
from kvcache.attention.triton_configuration import Configuration
from kvcache.attention.triton_parts import MOST_SPLITS, Part, parts_of, split_count

DECODE, PREFILL = Configuration(16, 64, 4, 3, 4), Configuration(128, 64, 8, 3, 1)
META = torch.device("meta")


def parts(counts: list[int], starts: list[int], heads: int = 8, window: int | None = None) -> tuple[Part, ...]:
    """Of tensors without contents: nothing can be read from them."""
    shape = AttentionShape(heads, 2, 64, 64, 16, window, torch.bfloat16, META)
    index = torch.empty(len(counts), dtype=torch.int32, device=META)
    slots = torch.empty(sum(counts), dtype=torch.int64, device=META)
    length = max((a + b for a, b in zip(counts, starts, strict=True)), default=0)
    step = GroupStep(index, index, index, index, slots, max(counts, default=0), length)
    return parts_of(step, shape, DECODE, PREFILL, 132)


def test_which_launches_a_step_needs() -> None:
    assert [part.long for part in parts([1, 4, 2], [10, 0, 5])] == [False]
    assert [part.long for part in parts([5], [10])] == [True]
    assert [part.long for part in parts([1, 5], [10, 0])] == [True, False]
    assert parts([], []) == ()


def test_a_window_bounds_what_is_split() -> None:
    assert parts([1], [60_000])[0].splits > 8
    assert parts([1], [60_000], window=256)[0].splits == 1


def test_partial_sums_have_places_for_every_split_of_every_tile() -> None:
    (part,) = parts([1, 1], [60_000, 3])
    assert part.partials is not None
    assert part.partials.sums.shape == (2, 2, part.splits, 16, 64)
    assert part.partials.peaks.shape == part.partials.totals.shape == (2, 2, part.splits, 16)
    assert parts([4000], [0])[0].partials is None


@given(counts=st.lists(st.integers(1, 700), min_size=1, max_size=12), heads=st.sampled_from([2, 6, 8, 80]))
def test_tiles_cover_every_row_of_every_sequence(counts: list[int], heads: int) -> None:
    """What the device's search relies on: the first tiles of long sequences leave each the tiles it needs."""
    found = {part.long: part for part in parts(counts, [0] * len(counts), heads)}
    group, begin = heads // 2, 0
    for index, count in enumerate(counts):
        first, last = begin * group // PREFILL.rows + index, (begin + count) * group // PREFILL.rows + index + 1
        begin += count
        short = max(1, DECODE.rows // group)
        if count > short:
            needed = -(-count * group // PREFILL.rows)
            assert last - first >= needed
            assert first + needed <= found[True].tiles
        else:
            assert found[False].tiles >= len(counts) * -(-count * group // DECODE.rows)


@given(programs=st.integers(1, 5000), blocks=st.integers(0, 4000), places=st.integers(1, 1000))
def test_splits_stay_within_what_a_merge_takes(programs: int, blocks: int, places: int) -> None:
    splits = split_count(programs, blocks, places)
    assert 1 <= splits <= MOST_SPLITS
    assert splits == 1 or blocks // splits >= 4


@pytest.mark.parametrize(
    ("programs", "blocks", "places", "splits"),
    [
        (256, 256, 528, 2),
        (600, 256, 528, 1),
        (8, 256, 528, 55),
        (8, 12, 528, 3),
        (500, 256, 528, 1),
        (300, 400, 528, 3),
    ],
)
def test_splits_fill_the_device(programs: int, blocks: int, places: int, splits: int) -> None:
    """32 sequences of 8 kv heads on 132 processors, and others; the fewest splits within 85% of the best."""
    assert split_count(programs, blocks, places) == splits
