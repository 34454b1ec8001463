"""HostIndex: slots are free, held or still read, under any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.host_index import HostIndex

actions = st.sampled_from(["add", "drop", "pin", "unpin", "touch"])


@given(st.integers(0, 4), st.lists(st.tuples(actions, st.integers(0, 5)), max_size=60))
def test_any_history_conserves_slots(total: int, history: list[tuple[str, int]]):
    host = HostIndex(total)
    pins: list[tuple[bytes, int]] = []
    for action, number in history:
        key = bytes([number])
        page = host.find(key)
        if action == "add" and page is None:
            free = host.free
            assert (host.add(key, 0, b"", 1, False) is None) is (free == 0)
        elif action == "drop" and page is not None:
            host.drop(key)
        elif action == "pin" and page is not None:
            host.pin(page)
            pins.append((key, page.slot))
        elif action == "unpin" and pins:
            host.unpin(*pins.pop(number % len(pins)), newest=number % 2 == 0)
        elif action == "touch" and page is not None:
            host.touch(key, number)
        host.check_integrity()
        assert host.pins() == len(pins)
        # What is being read has not been given to anybody else.
        slots = {one.slot: one.key for one in host.in_order()}
        assert not slots.keys() & {slot for _, slot in pins}


def test_the_oldest_goes_first_and_a_stored_one_before_it():
    host = HostIndex(3)
    pages = [host.add(bytes([number]), 0, b"", 1, False) for number in range(3)]
    host.touch(b"\0", 2)
    assert [page.key for page in host.in_order()] == [b"\1", b"\2", b"\0"]
    assert pages[2] is not None
    host.pin(pages[2])
    host.unpin(b"\2", pages[2].slot, newest=False)
    assert [page.key for page in host.in_order(newest_first=True)] == [b"\0", b"\1", b"\2"]


def test_a_lost_slot_is_noticed():
    host = HostIndex(2)
    host.add(b"key", 0, b"", 1, False)
    host._free.clear()
    with pytest.raises(AssertionError, match="a slot is lost"):
        host.check_integrity()
