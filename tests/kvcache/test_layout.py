"""CacheLayout: grouping of layers, and pages of one size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.layout import Keeps, LayerCache, build_layout

FULL = LayerCache(Keeps.FULL, None, 2, 8, 8)
SLIDING = LayerCache(Keeps.SLIDING, 32, 2, 8, 8)


@st.composite
def layer_caches(draw: st.DrawFn) -> LayerCache:
    keeps = draw(st.sampled_from(Keeps))
    window = draw(st.integers(1, 4096)) if keeps is Keeps.SLIDING else None
    sizes = st.integers(1, 256)
    return LayerCache(keeps, window, draw(st.integers(1, 16)), draw(sizes), draw(sizes))


@given(
    st.lists(layer_caches(), min_size=1, max_size=5).flatmap(
        lambda kinds: st.lists(st.sampled_from(kinds), min_size=1, max_size=60)
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 8, 16, 64]),
)
def test_any_layers_make_groups_of_equal_pages(layers: list[LayerCache], element_bytes: int, page_tokens: int):
    layout = build_layout(tuple(layers), element_bytes, page_tokens)
    assert sorted(slot for group in layout.groups for slot in group.slots) == list(range(len(layers)))
    for group in layout.groups:
        described = LayerCache(group.keeps, group.window, group.kv_heads, group.key_size, group.value_size)
        assert {layers[slot] for slot in group.slots} == {described}
        assert list(group.slots) == sorted(group.slots)
        used = group.token_bytes(element_bytes) * group.page_tokens
        assert layout.page_bytes // 2 < used <= layout.page_bytes
        assert group.page_tokens & (group.page_tokens - 1) == 0
    assert len({layers[group.slots[0]] for group in layout.groups}) == len(layout.groups)
    largest = max(layout.groups, key=lambda group: group.token_bytes(element_bytes))
    assert largest.page_tokens == page_tokens
    assert layout.page_bytes == page_tokens * largest.token_bytes(element_bytes)
    by_hand = sum(one.kv_heads * (one.key_size + one.value_size) for one in layers) * element_bytes
    assert layout.bytes_per_token == by_hand


def test_a_group_with_fewer_layers_gets_longer_pages():
    layout = build_layout((SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, SLIDING), element_bytes=2)
    sliding, full = layout.groups
    assert (sliding.slots, sliding.page_tokens) == ((0, 2, 3, 5, 6), 16)
    assert (full.slots, full.page_tokens) == ((1, 4), 32)
    assert layout.page_bytes == 16 * 5 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("layers", "element_bytes", "page_tokens", "message"),
    [
        ((), 2, 16, "at least one attention layer"),
        ((FULL,), 0, 16, "0 bytes"),
        ((FULL,), 2, 24, "power of two"),
        ((FULL,), 2, 0, "power of two"),
        ((FULL, replace(FULL, kv_heads=0)), 2, 16, "layer 1 keeps nothing"),
        ((replace(FULL, window=4),), 2, 16, "keeps every position"),
        ((replace(SLIDING, window=None),), 2, 16, "window of None"),
        ((replace(SLIDING, window=0),), 2, 16, "window of 0"),
    ],
)
def test_what_makes_no_layout_is_refused(
    layers: tuple[LayerCache, ...], element_bytes: int, page_tokens: int, message: str
):
    with pytest.raises(ValueError, match=message):
        build_layout(layers, element_bytes, page_tokens)
