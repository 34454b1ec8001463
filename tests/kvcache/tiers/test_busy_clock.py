"""BusyClock: the seconds of pieces done at once add up to the time in which there was work."""

from __future__ import annotations

import pytest

from kvcache.tiers.busy_clock import BusyClock


def test_time_is_shared_among_those_that_work_and_idle_time_is_nobodys() -> None:
    now = 0.0
    clock = BusyClock(lambda: now)
    now = 5.0
    with clock.work() as one:
        now = 6.0
        with clock.work() as two:
            now = 10.0
        now = 11.0
    now = 100.0
    with clock.work() as three:
        now = 102.0
    assert (one(), two(), three()) == (4.0, 2.0, 2.0)


def test_a_piece_that_raises_ends_too() -> None:
    now = 0.0
    clock = BusyClock(lambda: now)

    def fail() -> None:
        nonlocal now
        with clock.work():
            now = 1.0
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        fail()
    with clock.work() as next_one:
        now = 3.0
    assert next_one() == 2.0
