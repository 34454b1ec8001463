"""longest_prefix against its definition, over random layouts and holes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvcache.layout import CacheGroup, Keeps, LayerCache, oldest_seen
from kvcache.prefix_hit import Either, longest_prefix

groups = st.lists(
    st.builds(
        lambda keeps, window, size: CacheGroup(
            LayerCache(keeps, None if keeps in (Keeps.FULL, Keeps.LATENT) else window, 1, 4, 4), (0,), size
        ),
        st.sampled_from(Keeps),
        st.integers(1, 20),
        st.sampled_from([1, 2, 4]),
    ),
    min_size=1,
    max_size=3,
).map(tuple)


def serves(group: CacheGroup, held: set[int], length: int) -> bool:
    """Whether these pages have every position that the token at `length` sees, and the one before it."""
    oldest = min(oldest_seen(length, group.window, group.chunked), length - 1)
    return all(position // group.page_tokens in held for position in range(oldest, length))


@given(groups, st.integers(0, 48), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 47)), max_size=6))
def test_it_is_the_longest_that_serves_every_group(
    groups: tuple[CacheGroup, ...], limit: int, holes: list[tuple[int, int]]
):
    keys = [[bytes([number, page]) for page in range(48 // group.page_tokens)] for number, group in enumerate(groups)]
    lost = {
        bytes([number, position // groups[number].page_tokens]) for number, position in holes if number < len(groups)
    }
    held = {key for own in keys for key in own} - lost
    pages = [{key[1] for key in own if key in held} for own in keys]
    span = max(group.page_tokens for group in groups)
    expected = max(
        length
        for length in range(0, limit + 1, span)
        if length == 0 or all(serves(group, own, length) for group, own in zip(groups, pages, strict=True))
    )
    assert longest_prefix(groups, keys, limit, held) == expected
    half = {key for key in held if sum(key) % 2}
    assert longest_prefix(groups, keys, limit, Either(half, held - half)) == expected
