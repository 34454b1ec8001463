"""Team: threads that share the items of one kernel call at a time. What an item computes is the kernels' business.

Why not OpenMP: its regions end when every thread has taken part. Where the server, its clients or anything else uses
the same cores, each of some 200 regions a step then waits for a thread that has no core. Here the caller works through
the items itself, helpers join while there are any, and nobody waits for a helper that has not begun. It also needs no
library that a machine may lack.

One job at a time is published in `state` (one word per cache line, to keep writers apart):

    TICKET    counts jobs; helpers wait for it to change, first spinning, then asleep in the kernel
    OPEN      1 while the job may be joined
    COUNTER   the next item
    ACTIVE    helpers inside the job
    SLEEPING  helpers to be woken

A helper adds itself to ACTIVE and then looks at OPEN; the caller clears OPEN and then waits for ACTIVE to be 0: one of
the two sees the other, so a job's words never change under a helper.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy
from numba import carray, njit  # pyright: ignore[reportPrivateImportUsage]
from numpy.typing import NDArray

from quant.cpu.arena import Arena
from quant.cpu.memory import (
    add_shared,
    call_item,
    integers_at,
    load_shared,
    pause,
    sleep_on,
    store_shared,
    wake_all,
    yield_core,
)  # fmt: skip

LINE_WORDS = 8
LINE_BYTES = 8 * LINE_WORDS
TICKET, OPEN, COUNTER, ACTIVE, SLEEPING, FUNCTION, ARGUMENTS, ITEMS, CLOSING = (LINE_BYTES * i for i in range(9))
# About 0.1 ms: longer than the gaps between a step's kernels, shorter than anything a person notices.
SPINS = 6000
# A helper that lost its core in the middle of an item is given ours after this many looks.
PATIENCE = 2000


ITEM_SIGNATURE = "void(int64, int64, int64)"


@njit(nogil=True, cache=True, inline="always")
def arguments_at(address, count) -> Any:
    """The int64 words of a job's arguments."""
    return carray(integers_at(address), (count,))


@njit(nogil=True, cache=True)
def _work(state, thread):
    """Takes items until none is left."""
    function, arguments, items = (
        load_shared(state + FUNCTION), load_shared(state + ARGUMENTS), load_shared(state + ITEMS)
    )  # fmt: skip
    while True:
        item = add_shared(state + COUNTER, 1)
        if item >= items:
            break
        call_item(function, arguments, item, thread)


@njit(nogil=True, cache=True)
def _help(state, thread):
    """A helper's life."""
    seen = 0
    while True:
        spins = 0
        while load_shared(state + TICKET) == seen:
            spins += 1
            if spins < SPINS:
                pause()
            else:
                add_shared(state + SLEEPING, 1)
                sleep_on(state + TICKET, seen)
                add_shared(state + SLEEPING, -1)
        seen = load_shared(state + TICKET)
        if load_shared(state + CLOSING):
            break
        add_shared(state + ACTIVE, 1)
        if load_shared(state + OPEN):
            _work(state, thread)
        add_shared(state + ACTIVE, -1)


@njit(nogil=True, cache=True)
def _run(state, function, arguments, items):
    """Publishes a job, works on it, and returns when all its items are done."""
    store_shared(state + FUNCTION, function)
    store_shared(state + ARGUMENTS, arguments)
    store_shared(state + ITEMS, items)
    store_shared(state + COUNTER, 0)
    store_shared(state + OPEN, 1)
    add_shared(state + TICKET, 1)
    if load_shared(state + SLEEPING) > 0:
        wake_all(state + TICKET)
    _work(state, 0)
    store_shared(state + OPEN, 0)
    looks = 0
    while load_shared(state + ACTIVE) > 0:
        looks += 1
        if looks < PATIENCE:
            pause()
        else:
            yield_core()


@njit(nogil=True, cache=True)
def _alone(function, arguments, items):
    for item in range(items):
        call_item(function, arguments, item, 0)


@njit(nogil=True, cache=True)
def _run_all(state, threads, functions, arguments, stride, items, count):
    """One job after the other, each finished before the next begins."""
    function_list, item_counts = arguments_at(functions, count), arguments_at(items, count)
    for job in range(count):
        if item_counts[job] < 2 or threads < 2:
            _alone(function_list[job], arguments + job * stride, item_counts[job])
        else:
            _run(state, function_list[job], arguments + job * stride, item_counts[job])


@njit(nogil=True, cache=True)
def _close(state):
    store_shared(state + CLOSING, 1)
    add_shared(state + TICKET, 1)
    wake_all(state + TICKET)


class Team:
    """`threads` threads, the caller's among them, and the arena of the weights they stream through.

    Calls come from one thread at a time; helpers start with the first.

    An item function is a numba cfunc of (arguments address, item, thread) -> None that raises nothing; `thread` is
    below `threads`, and 0 is the caller.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.arena = Arena()
        self._end: weakref.finalize[Any, Any] | None = None
        self._make_state()

    def run(self, function: Any, arguments: int, items: int) -> None:
        """Computes all items of an item function, in any order, on any thread; `arguments` is the address they get."""
        if items < 2 or self.threads < 2:
            _alone(function.address, arguments, items)
            return
        if self._end is None:
            self._start()
        _run(self._state, function.address, arguments, items)

    def run_all(self, functions: int, arguments: int, stride: int, items: int, count: int) -> None:
        """Runs `count` jobs in order; at the addresses: functions, arguments `stride` bytes apart, item counts."""
        if self._end is None and self.threads > 1:
            self._start()
        _run_all(self._state, self.threads, functions, arguments, stride, items, count)

    def close(self) -> None:
        """Ends the helpers; a later `run` starts new ones."""
        if self._end is not None:
            self._end()
            self._end = None
            self._make_state()

    def _make_state(self) -> None:
        # A line of distance before, so that no other allocation shares the first word's line.
        self._memory = numpy.zeros(16 * LINE_WORDS, numpy.int64)
        self._state = (self._memory.ctypes.data + 2 * LINE_BYTES) & ~(LINE_BYTES - 1)

    def _start(self) -> None:
        helpers = [
            # The memory goes along so that it outlives the team for as long as a helper looks at it.
            threading.Thread(
                target=_helper, args=(self._memory, self._state, thread), name=f"compute-{thread}", daemon=True
            )
            for thread in range(1, self.threads)
        ]
        for helper in helpers:
            helper.start()
        # A team that is dropped without `close` ends its helpers, too.
        self._end = weakref.finalize(self, _end, self._memory, self._state, helpers)


def _helper(memory: NDArray[numpy.int64], state: int, thread: int) -> None:
    _help(state, thread)
    del memory


def _end(memory: NDArray[numpy.int64], state: int, helpers: list[threading.Thread]) -> None:
    _close(state)
    for helper in helpers:
        helper.join()
    del memory
