"""PageTable: positions have pages, and a window leaves behind exactly what nothing sees any more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvcache.page_table import PageTable


def positions_held(table: PageTable) -> range:
    return range(table.first * table.page_tokens, (table.first + len(table.ids)) * table.page_tokens)


@given(
    st.sampled_from([1, 2, 4, 16]),
    st.none() | st.integers(1, 40),
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
)
def test_each_step_holds_what_it_sees_and_no_page_more(page_tokens: int, window: int | None, steps: list[int]):
    table = PageTable(page_tokens, window)
    start, next_id, dropped = 0, 0, []
    most = table.most_pages(sum(steps), max(steps))
    for count in steps:
        dropped += table.slide(start)
        missing = table.missing(start + count)
        table.ids.extend(range(next_id, next_id + missing))
        next_id += missing
        held = positions_held(table)
        oldest = 0 if window is None else max(0, start - window + 1)
        assert held.start <= oldest < held.start + page_tokens
        assert start + count <= held.stop < start + count + page_tokens
        assert len(table.ids) <= most
        # Every page ever appended is still here or was given back, in order.
        assert dropped + table.ids == list(range(next_id))
        start += count
    assert table.missing(start) == 0


@given(st.sampled_from([1, 4, 16]), st.integers(0, 100), st.integers(0, 100))
def test_truncation_keeps_the_pages_below_a_length(page_tokens: int, length: int, kept: int):
    table = PageTable(page_tokens, None)
    table.ids.extend(range(table.missing(length)))
    before = list(table.ids)
    dropped = table.truncate(kept)
    assert table.ids + dropped == before
    assert len(table.ids) == min(len(before), -(-kept // page_tokens))


def test_a_window_tells_where_it_can_continue():
    table = PageTable(4, window=6)
    table.ids.extend(range(table.missing(20)))
    assert table.slide(16) == [0, 1]
    assert table.first == 2
    assert table.can_continue_at(13)
    assert not table.can_continue_at(12)
    assert table.clear() == [2, 3, 4]
    assert (table.first, table.ids) == (0, [])


def test_the_peak_of_a_window_is_reached():
    table = PageTable(4, window=4)
    # Three positions before the step and two of it: 5 in a row touch at most 2 pages of 4, and 6 may touch 3.
    assert table.most_pages(100, step_tokens=2) == 2
    assert table.most_pages(100, step_tokens=3) == 3
    assert table.most_pages(3, step_tokens=3) == 1
