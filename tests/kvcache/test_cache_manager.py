"""CacheManager: all groups or nothing, and every page has exactly its holders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.cache_manager import CacheManager
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_table import PageTable
from kvcache.sequence_pages import SequencePages

FULL = LayerCache(Keeps.FULL, None, 1, 4, 4)
SLIDING = LayerCache(Keeps.SLIDING, 5, 1, 4, 4)
LAYOUT = build_layout((FULL, SLIDING, SLIDING), 2, page_tokens=2)


def test_growing_takes_pages_in_all_groups_or_none():
    cache = CacheManager(LAYOUT, pages=5)
    pages = cache.open()
    tables = pages.tables
    assert [table.page_tokens for table in tables] == [4, 2]
    assert cache.pages_needed(pages, 4) == 1 + 2
    assert cache.grow(pages, 4)
    assert not cache.grow(pages, 8)
    assert [len(table.ids) for table in tables] == [1, 2]
    assert cache.statistics().pages_used == 3
    assert cache.grow(pages, 6)
    assert cache.available_pages == 0
    cache.check_integrity([pages])
    cache.release(pages)
    assert cache.available_pages == 5


def test_truncation_past_a_window_changes_nothing():
    cache = CacheManager(LAYOUT, pages=20)
    pages = cache.open()
    tables = pages.tables
    cache.grow(pages, 12)
    cache.slide(pages, 11)
    before = [list(table.ids) for table in tables]
    with pytest.raises(ValueError, match="the token at 8 must see"):
        cache.truncate(pages, 8)
    assert [table.ids for table in tables] == before
    cache.truncate(pages, 10)
    assert [len(table.ids) for table in tables] == [3, 2]
    cache.check_integrity([pages])


Histories = list[tuple[int, str, int]]


@given(
    st.integers(1, 16),
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["grow", "advance", "truncate", "release"]), st.integers(0, 20)),
        max_size=50,
    ),
)
def test_any_history_of_sequences_keeps_every_page_accounted_for(pages: int, history: Histories):
    cache = CacheManager(LAYOUT, pages)
    handles = [cache.open() for _ in range(4)]
    lengths = [0] * 4
    for number, action, amount in history:
        handle = handles[number]
        if action == "grow":
            _grow(cache, handle, max(lengths[number], amount))
        elif action == "advance":
            lengths[number] = max(lengths[number], min(_covered(table) for table in handle.tables))
            cache.slide(handle, lengths[number])
        elif action == "truncate" and all(table.can_continue_at(amount) for table in handle.tables):
            cache.truncate(handle, amount)
            lengths[number] = min(lengths[number], amount)
        elif action == "release":
            cache.release(handle)
            lengths[number] = 0
        cache.check_integrity(handles)


def _covered(table: PageTable) -> int:
    return (table.first + len(table.ids)) * table.page_tokens


def _grow(cache: CacheManager, pages: SequencePages, length: int) -> None:
    needed, free = cache.pages_needed(pages, length), cache.available_pages
    grown = cache.grow(pages, length)
    assert grown is (needed <= free)
    assert cache.available_pages == free - (needed if grown else 0)
    if grown:
        assert min(_covered(table) for table in pages.tables) >= length


def test_lost_and_shared_pages_are_noticed():
    cache = CacheManager(LAYOUT, pages=8)
    first, second = cache.open(), cache.open()
    cache.grow(first, 2)
    with pytest.raises(AssertionError, match="lost or shared"):
        cache.check_integrity([])
    second.tables[0].ids.append(first.tables[0].ids[0])
    with pytest.raises(AssertionError, match="lost or shared"):
        cache.check_integrity([first, second])
