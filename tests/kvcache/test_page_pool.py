"""PagePool: pages are free or counted, never both, never lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.page_pool import PagePool


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from(["take", "share", "release"]), st.integers(0, 6)), max_size=60),
)
def test_counts_follow_any_history(total: int, history: list[tuple[str, int]]):
    pool = PagePool(total)
    held: list[int] = []
    for action, number in history:
        if action == "take":
            free = total - len(set(held))
            taken = pool.take(number)
            if number > free:
                assert taken is None
            else:
                assert taken is not None
                assert len(set(taken)) == number
                assert not set(taken) & set(held)
                held += taken
        elif held and action == "share":
            pool.share(held[number % len(held)])
            held.append(held[number % len(held)])
        elif held:
            pool.release([held.pop(number % len(held))])
        pool.check_integrity()
        assert pool.used == len(set(held)) == total - pool.free
        assert [pool.count(page) for page in range(total)] == [held.count(page) for page in range(total)]


def test_a_shared_page_is_free_only_after_its_last_holder():
    pool = PagePool(1)
    (page,) = pool.take(1) or []
    pool.share(page)
    pool.release([page])
    assert pool.take(1) is None
    pool.release([page])
    assert pool.take(1) == [page]


def test_a_free_page_cannot_be_shared_or_released():
    pool = PagePool(2)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(1)
    with pytest.raises(ValueError, match="does not hold it"):
        pool.release([1])


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="0 pages"):
        PagePool(0)


def test_a_broken_pool_is_noticed():
    pool = PagePool(3)
    pool._free.append(0)
    with pytest.raises(AssertionError, match="disagree"):
        pool.check_integrity()
