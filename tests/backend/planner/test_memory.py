"""What a pool of pages holds, solved in closed form, beside a search by trial."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from backend.planner.memory import context_of_pages, pages_of_context
from kvcache.layout import Keeps, LayerCache, build_layout

KINDS = st.sampled_from(
    [
        LayerCache(Keeps.FULL, None, 2, 64, 64),
        LayerCache(Keeps.SLIDING, 128, 2, 64, 64),
        LayerCache(Keeps.SLIDING, 1000, 1, 64, 64),
        LayerCache(Keeps.SLIDING, 1, 4, 32, 32),
        LayerCache(Keeps.CHUNKED, 512, 4, 64, 32),
        LayerCache(Keeps.LATENT, None, 1, 576, 512),
    ]
)


def by_trial(layers: tuple[LayerCache, ...], pages: int, step: int, limit: int) -> int:
    layout = build_layout(layers, 2)
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pages_of_context(layout, middle, step) <= pages else (low, middle - 1)
    return low


@settings(max_examples=300, deadline=None)
@given(
    layers=st.lists(KINDS, min_size=1, max_size=12).map(tuple),
    pages=st.integers(0, 3000),
    step=st.sampled_from([1, 16, 512, 4096]),
    limit=st.integers(1, 40_000),
)
@example(layers=(LayerCache(Keeps.FULL, None, 2, 64, 64),), pages=0, step=512, limit=100)
def test_the_longest_context_is_what_a_search_finds(
    layers: tuple[LayerCache, ...], pages: int, step: int, limit: int
) -> None:
    assert context_of_pages(build_layout(layers, 2), pages, step, limit) == by_trial(layers, pages, step, limit)
