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


actions = st.sampled_from(["take", "share", "release", "keep", "forget", "evict", "pin", "unpin", "touch"])


@given(st.integers(1, 8), st.lists(st.tuples(actions, st.integers(0, 7)), max_size=80))
def test_any_history_of_kept_and_pinned_pages_leaves_each_in_one_place(total: int, history: list[tuple[str, int]]):
    pool = PagePool(total)
    held: list[int] = []
    pinned: set[int] = set()
    for action, number in history:
        page = number % total
        cached = set(pool.cached_pages())
        if action == "take":
            held += pool.take(number % 3) or []
        elif action == "share" and (page in held or page in cached):
            pool.share(page)
            held.append(page)
        elif action == "release" and held:
            pool.release([held.pop(number % len(held))])
        elif action == "keep" and page in held:
            pool.keep(page)
        elif action == "forget" and (page in held or page in cached):
            pool.forget(page)
        elif action == "evict":
            oldest = [one for one in pool.cached_pages() if one not in pinned]
            assert pool.evict(number) == oldest[:number]
        elif action == "pin" and page not in pinned and (page in held or page in cached):
            pool.pin(page)
            pinned.add(page)
        elif action == "unpin" and page in pinned:
            pool.unpin(page)
            pinned.remove(page)
        elif action == "touch":
            pool.touch(page)
            assert page not in cached or next(pool.cached_pages(newest_first=True)) == page
        pool.check_integrity()
        assert pool.pinned_pages() == sorted(pinned)
        assert pool.evictable == len(set(pool.cached_pages()) - pinned)
        assert pool.used + pool.cached + pool.free == total


def test_a_kept_page_outlives_its_holders_until_its_place_is_needed():
    pool = PagePool(2)
    first, second = pool.take(2) or []
    pool.keep(first)
    pool.release([first, second])
    assert (pool.free, pool.cached) == (1, 1)
    pool.share(first)
    assert (pool.count(first), pool.cached) == (1, 0)
    pool.release([first])
    assert pool.take(2) is None
    assert pool.evict(5) == [first]
    assert len(pool.take(2) or []) == 2


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
