"""What a mask lets through is found by asking, and odd masks are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from backend.surgery.mask import Mask, OddMaskError, Sight, sight
from kvcache.layout import Keeps

LONGEST = 300


def seen(function: Any) -> Sight:
    return sight(Mask(function), LONGEST)


def test_causal() -> None:
    assert seen(causal_mask_function) == Sight(Keeps.FULL, None)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, LONGEST))
def test_windows_and_chunks_of_every_size(size: int) -> None:
    without_data = torch.zeros(1, dtype=torch.long, device="meta")
    assert seen(sliding_window_causal_mask_function(size)) == Sight(Keeps.SLIDING, size)
    assert seen(chunked_causal_mask_function(size, without_data)) == Sight(Keeps.CHUNKED, size)


def test_what_reaches_past_the_longest_position_is_full() -> None:
    assert seen(sliding_window_causal_mask_function(LONGEST + 1)) == Sight(Keeps.FULL, None)


def ahead(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return key <= query + 1


def every_other(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & ((query - key) % 2 == 0)


def first_and_near(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & ((query - key < 8) | (key < 4))


def shifted_chunks(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & ((key + 3) // 8 == (query + 3) // 8)


def blind(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return key < 0


@pytest.mark.parametrize("function", [ahead, every_other, first_and_near, shifted_chunks, blind])
def test_other_masks_are_refused(function: Any) -> None:
    with pytest.raises(OddMaskError):
        seen(function)


def test_a_mask_over_data_that_the_trace_lacks_is_refused() -> None:
    blocks = torch.zeros(1, 1024, dtype=torch.long, device="meta")

    def same_block(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
        return blocks[batch, query] == blocks[batch, key]

    with pytest.raises(OddMaskError, match="more than positions"):
        seen(and_masks(causal_mask_function, same_block))


def test_blocks_that_see_each_other_are_for_images_and_text_has_none() -> None:
    blocks = blockwise_overlay(torch.full((1, 2), -1, device="meta"))
    assert seen(or_masks(causal_mask_function, blocks)) == Sight(Keeps.FULL, None)


def test_blocks_that_are_known_count() -> None:
    blocks = blockwise_overlay(torch.zeros(1, LONGEST + 9, dtype=torch.long))
    with pytest.raises(OddMaskError, match="not causal"):
        seen(or_masks(causal_mask_function, blocks))
