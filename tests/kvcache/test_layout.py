"""CacheLayout: grouping of layers, and pages of one size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.layout import Keeps, LayerCache, build_layout, rank_layout
from quant.kv_format import KV_FORMATS, KVFormats

FULL = LayerCache(Keeps.FULL, None, 2, 8, 8)
SLIDING = LayerCache(Keeps.SLIDING, 32, 2, 8, 8)


@st.composite
def layer_caches(draw: st.DrawFn) -> LayerCache:
    keeps = draw(st.sampled_from(Keeps))
    window = draw(st.integers(1, 4096)) if keeps in (Keeps.SLIDING, Keeps.CHUNKED) else None
    key = draw(st.integers(1, 256))
    value = draw(st.integers(1, key if keeps is Keeps.LATENT else 256))
    return LayerCache(keeps, window, draw(st.integers(1, 16)), key, value)


kv_formats = st.builds(KVFormats, st.sampled_from([*KV_FORMATS.values()]), st.sampled_from([*KV_FORMATS.values()]))


def bytes_by_hand(layer: LayerCache, formats: KVFormats, model_bytes: int) -> int:
    """What a token takes in one layer, spelled out."""
    total = 0
    sizes = ((layer.key_size, formats.key), (0 if layer.keeps is Keeps.LATENT else layer.value_size, formats.value))
    for size, one in sizes:
        if size:
            total += layer.kv_heads * (size * (model_bytes if one.name == "model" else 1) + (one.name != "model") * 2)
    return total


@given(
    st.lists(layer_caches(), min_size=1, max_size=5).flatmap(
        lambda kinds: st.lists(st.sampled_from(kinds), min_size=1, max_size=60)
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 8, 16, 64]),
    kv_formats,
)
def test_any_layers_make_groups_of_equal_pages(
    layers: list[LayerCache], model_bytes: int, page_tokens: int, formats: KVFormats
):
    layout = build_layout(tuple(layers), model_bytes, page_tokens, formats)
    assert sorted(slot for group in layout.groups for slot in group.slots) == list(range(len(layers)))
    for group in layout.groups:
        assert {layers[slot] for slot in group.slots} == {group.layer}
        assert list(group.slots) == sorted(group.slots)
        used = layout.token_bytes(group) * group.page_tokens
        assert layout.page_bytes // 2 < used <= layout.page_bytes
        assert group.page_tokens & (group.page_tokens - 1) == 0
        assert layout.head_bytes(group) * group.layer.kv_heads == used
    assert len({layers[group.slots[0]] for group in layout.groups}) == len(layout.groups)
    largest = max(layout.groups, key=layout.token_bytes)
    assert largest.page_tokens == page_tokens
    assert layout.page_bytes == page_tokens * layout.token_bytes(largest)
    assert layout.bytes_per_token == sum(bytes_by_hand(one, formats, model_bytes) for one in layers)


def test_a_group_with_fewer_layers_gets_longer_pages():
    layout = build_layout((SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, SLIDING), 2)
    sliding, full = layout.groups
    assert (sliding.slots, sliding.page_tokens) == ((0, 2, 3, 5, 6), 16)
    assert (full.slots, full.page_tokens) == ((1, 4), 32)
    assert layout.page_bytes == 16 * 5 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("layers", "model_bytes", "page_tokens", "message"),
    [
        ((), 2, 16, "at least one attention layer"),
        ((FULL,), 0, 16, "0 bytes"),
        ((FULL,), 2, 24, "power of two"),
        ((FULL,), 2, 0, "power of two"),
        ((FULL, replace(FULL, kv_heads=0)), 2, 16, "layer 1 keeps nothing"),
        ((replace(FULL, window=4),), 2, 16, "keeps every position"),
        ((replace(SLIDING, window=None),), 2, 16, "window of None"),
        ((replace(SLIDING, window=0),), 2, 16, "window of 0"),
        ((replace(SLIDING, keeps=Keeps.CHUNKED, window=None),), 2, 16, "window of None"),
        ((LayerCache(Keeps.LATENT, None, 1, 8, 9),), 2, 16, "latents of 8"),
    ],
)
def test_what_makes_no_layout_is_refused(
    layers: tuple[LayerCache, ...], model_bytes: int, page_tokens: int, message: str
):
    with pytest.raises(ValueError, match=message):
        build_layout(layers, model_bytes, page_tokens)


def share(layers: list[LayerCache], part: int, parts: int) -> tuple[LayerCache, ...]:
    """The layers with one rank's KV heads: earlier ranks get one more where they do not divide."""
    counts = [layer.kv_heads // parts + (part < layer.kv_heads % parts) for layer in layers]
    return tuple(replace(layer, kv_heads=max(1, count)) for layer, count in zip(layers, counts, strict=True))


@given(st.lists(layer_caches(), min_size=1, max_size=12), st.integers(1, 4), kv_formats)
def test_ranks_keep_the_groups_of_the_model_and_pages_of_their_own_heads(
    layers: list[LayerCache], parts: int, formats: KVFormats
):
    layout = build_layout(tuple(layers), 2, 16, formats)
    for part in range(parts):
        own = share(layers, part, parts)
        local = rank_layout(layout, own)
        assert [(one.slots, one.page_tokens) for one in local.groups] == [
            (one.slots, one.page_tokens) for one in layout.groups
        ]
        used = [
            sum(bytes_by_hand(own[slot], formats, 2) for slot in group.slots) * group.page_tokens
            for group in local.groups
        ]
        assert max(used) <= local.page_bytes < max(used) + 16
        assert local.page_bytes % 16 == 0


def test_one_rank_keeps_the_models_own_layout():
    layout = build_layout((FULL, SLIDING, FULL), 2)
    assert rank_layout(layout, (FULL, SLIDING, FULL)) == layout


def test_groups_that_become_alike_on_a_rank_stay_apart():
    layers = (replace(FULL, kv_heads=2), replace(FULL, kv_heads=3))
    layout = build_layout(layers, 2)
    alike = replace(FULL, kv_heads=1)
    assert [group.slots for group in rank_layout(layout, (alike, alike)).groups] == [(0,), (1,)]


def test_shares_that_do_not_fit_the_model_are_refused():
    layout = build_layout((FULL, FULL), 2)
    with pytest.raises(ValueError, match="unlike shares"):
        rank_layout(layout, (FULL, replace(FULL, kv_heads=1)))
    with pytest.raises(ValueError, match="cannot be"):
        rank_layout(layout, (SLIDING, SLIDING))
