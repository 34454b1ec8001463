"""The team of threads: every item once, whatever the sizes, and helpers that end when the team does."""

from __future__ import annotations

import gc
import threading
import time

import numpy
from numba import cfunc

from quant.cpu.memory import add_shared, store_shared
from quant.cpu.team import ITEM_SIGNATURE, Team, arguments_at


@cfunc(ITEM_SIGNATURE)
def _count(arguments, item, thread):
    """Adds 1 to the item's word, and notes who did it."""
    words = arguments_at(arguments, 2)
    add_shared(words[0] + item * 8, 1)
    store_shared(words[1] + item * 8, thread)


def counted(team: Team, items: int) -> tuple[list[int], set[int]]:
    counts, threads = numpy.zeros(items, numpy.int64), numpy.full(items, 99, numpy.int64)
    arguments = numpy.array([counts.ctypes.data, threads.ctypes.data], numpy.int64)
    team.run(_count, arguments.ctypes.data, items)
    return counts.tolist(), set(threads.tolist())


def helpers() -> int:
    return sum(thread.name.startswith("compute-") for thread in threading.enumerate())


def test_each_item_is_computed_once() -> None:
    team = Team(3)
    for items in [0, 1, 2, 3, 1000, *range(1, 60)] * 20:
        counts, threads = counted(team, items)
        assert counts == [1] * items
        assert threads <= {0, 1, 2}
    team.close()


def test_helpers_that_fell_asleep_are_woken() -> None:
    team = Team(2)
    counted(team, 10)
    seen: set[int] = set()
    # A helper may come too late for a short job; over many jobs after a rest it must have taken part.
    for _ in range(20):
        time.sleep(0.02)
        for _ in range(5):
            seen |= counted(team, 200_000)[1]
        if 1 in seen:
            break
    assert 1 in seen
    team.close()


def test_helpers_end_with_their_team_and_start_again() -> None:
    before = helpers()
    team = Team(3)
    counted(team, 5)
    assert helpers() == before + 2
    team.close()
    assert helpers() == before
    counted(team, 5)
    assert helpers() == before + 2
    del team
    gc.collect()
    assert helpers() == before


def test_one_thread_needs_no_helper() -> None:
    before = helpers()
    assert counted(Team(1), 7) == ([1] * 7, {0})
    assert helpers() == before
