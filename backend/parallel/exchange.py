"""Sums and gathers over memory that ranks share, in machine code; who made that memory is `shared_group`'s.

Every rank has a line of words and two slots in the shared memory:

    ARRIVED    counts the exchanges that this rank has put into its slots; others wait for it, spinning, then asleep
    SLEEPING   how many sleep on ARRIVED
    LEFT       1 when the rank is gone for good
    CALL       [2] what each slot holds, as a number: all ranks must have made the same call

An exchange copies a part of a tensor into this rank's slot (exchange number modulo 2), counts it in ARRIVED, waits for
all others' and reads their slots. A slot is written again two exchanges later: whoever takes part in the next one has
read this one's, so two slots are enough. Every rank adds in the order of ranks, in float32: all have the same bits.

An exchange that fails leaves its reason in the rank's own state; every later one returns it at once.
"""

from __future__ import annotations

from typing import Any

from numba import carray, cfunc, int32, njit, uint16  # pyright: ignore[reportPrivateImportUsage]

from quant.cpu.memory import (
    add_shared,
    bits_of_float,
    bytes_at,
    float_of_bits,
    floats_at,
    halves_at,
    integers_at,
    load_shared,
    look_at_files,
    pause,
    read_clock,
    sleep_between,
    store_shared,
    wake_between,
)
from quant.cpu.team import ITEM_SIGNATURE, LINE_BYTES

# A rank's own state: int64 words by index. SLICE, CLOCK, FILES and SCRATCH are addresses.
RANK, SIZE, SHARED, SLOT_BYTES, SLOTS, SEQUENCE, SPINS, LIMIT, SLICE, CLOCK, FILES, SCRATCH, STATUS, CULPRIT = range(14)
STATE_WORDS = 16
# A rank's line in the shared memory, byte offsets; the lines lie before the slots.
ARRIVED, SLEEPING, LEFT, CALL = 0, LINE_BYTES, 2 * LINE_BYTES, 3 * LINE_BYTES
RANK_BYTES = 4 * LINE_BYTES
# How an exchange ended.
DONE, LOST, LATE, MISMATCH = range(4)
# Elements: kinds are what CALL tells apart, too.
FLOAT32, BFLOAT16, BYTES = range(3)
# Elements that are added up in the first-level cache before they are rounded.
BLOCK = 2048


@njit(nogil=True, cache=True, inline="always")
def _words(address, count) -> Any:
    return carray(integers_at(address), (count,))


@njit(nogil=True, cache=True)
def _copy(target, source, size):
    """Bytes; both ends are read and written as wide as the machine can."""
    to, of = carray(bytes_at(target), (size,)), carray(bytes_at(source), (size,))
    for index in range(size):
        to[index] = of[index]


@njit(nogil=True, cache=True)
def _await(state, peer, sequence):
    """Waits for a rank's exchange: a moment awake, then asleep, with looks at who is still there."""
    own = _words(state, STATE_WORDS)
    line = own[SHARED] + peer * RANK_BYTES
    for _ in range(own[SPINS]):
        if load_shared(line + ARRIVED) >= sequence:
            return DONE
        pause()
    began = read_clock(own[CLOCK])
    while True:
        seen = load_shared(line + ARRIVED)
        if seen >= sequence:
            return DONE
        add_shared(line + SLEEPING, 1)
        sleep_between(line + ARRIVED, seen, own[SLICE])
        add_shared(line + SLEEPING, -1)
        if load_shared(line + ARRIVED) < sequence:
            if _somebody_left(own):
                return LOST
            if read_clock(own[CLOCK]) - began > own[LIMIT]:
                own[CULPRIT] = peer
                return LATE


@njit(nogil=True, cache=True)
def _somebody_left(own):
    """Whether a rank left the group or its process ended; says who."""
    size = own[SIZE]
    # A pollfd's last 16 bits say what happened to it. Behind the files lies a time of nothing.
    look_at_files(own[FILES], size, own[FILES] + 8 * size)
    files = _words(own[FILES], size)
    for peer in range(size):
        if peer != own[RANK] and (files[peer] >> 48 != 0 or load_shared(own[SHARED] + peer * RANK_BYTES + LEFT) != 0):
            own[CULPRIT] = peer
            return True
    return False


@njit(nogil=True, cache=True)
def _slot(own, rank, sequence):
    return own[SLOTS] + (2 * rank + sequence % 2) * own[SLOT_BYTES]


@njit(nogil=True, cache=True)
def _exchange(state, source, size, call):
    """One exchange of up to a slot's bytes; afterwards all ranks' slots hold theirs."""
    own = _words(state, STATE_WORDS)
    sequence = own[SEQUENCE] + 1
    own[SEQUENCE] = sequence
    line = own[SHARED] + own[RANK] * RANK_BYTES
    _copy(_slot(own, own[RANK], sequence), source, size)
    store_shared(line + CALL + 8 * (sequence % 2), call)
    store_shared(line + ARRIVED, sequence)
    if load_shared(line + SLEEPING) > 0:
        wake_between(line + ARRIVED)
    for peer in range(own[SIZE]):
        if peer != own[RANK]:
            status = _await(state, peer, sequence)
            if status != DONE:
                return status
            if load_shared(own[SHARED] + peer * RANK_BYTES + CALL + 8 * (sequence % 2)) != call:
                own[CULPRIT] = peer
                return MISMATCH
    return DONE


@njit(nogil=True, cache=True)
def _add_to(sums, source, count, kind, first):
    """Adds `count` elements at an address to float32 sums, or begins these."""
    sums = carray(floats_at(sums), (count,))
    if kind == FLOAT32:
        floats = carray(floats_at(source), (count,))
        for index in range(count):
            sums[index] = floats[index] if first else sums[index] + floats[index]
        return
    halves = carray(halves_at(source), (count,))
    for index in range(count):
        value = float_of_bits(int32(halves[index]) << int32(16))
        sums[index] = value if first else sums[index] + value


@njit(nogil=True, cache=True)
def _round(target, sums, count, kind):
    """Writes float32 sums as elements, to nearest even; NaN stays NaN."""
    sums = carray(floats_at(sums), (count,))
    if kind == FLOAT32:
        floats = carray(floats_at(target), (count,))
        for index in range(count):
            floats[index] = sums[index]
        return
    halves = carray(halves_at(target), (count,))
    for index in range(count):
        bits = bits_of_float(sums[index])
        rounded = bits + int32(0x7FFF) + ((bits >> int32(16)) & int32(1))
        kept = bits | int32(0x400000) if (bits & int32(0x7FFFFFFF)) > int32(0x7F800000) else rounded
        halves[index] = uint16(kept >> int32(16))


@njit(nogil=True, cache=True)
def _sum_slots(own, target, count, kind, width):
    """Writes the sum of all ranks' slots of this exchange over what this rank put in."""
    for start in range(0, count, BLOCK):
        part = min(BLOCK, count - start)
        for rank in range(own[SIZE]):
            source = _slot(own, rank, own[SEQUENCE]) + start * width
            _add_to(own[SCRATCH], source, part, kind, rank == 0)
        _round(target + start * width, own[SCRATCH], part, kind)


@njit(nogil=True, cache=True)
def all_reduce(state, target, count, kind):
    """Sums `count` elements at `target` over all ranks, in place: DONE, or why not."""
    own = _words(state, STATE_WORDS)
    width = 4 if kind == FLOAT32 else 2
    most = own[SLOT_BYTES] // width
    for start in range(0, count, most):
        if own[STATUS] != DONE:
            break
        part = min(most, count - start)
        own[STATUS] = _exchange(state, target + start * width, part * width, 4 * part * width + kind)
        if own[STATUS] == DONE:
            _sum_slots(own, target + start * width, part, kind, width)
    return own[STATUS]


@njit(nogil=True, cache=True)
def gather(state, target, source, size):
    """Copies every rank's `size` bytes, one rank's after the other, to `target` on rank 0: DONE, or why not."""
    own = _words(state, STATE_WORDS)
    for start in range(0, size, own[SLOT_BYTES]):
        if own[STATUS] != DONE:
            break
        part = min(own[SLOT_BYTES], size - start)
        own[STATUS] = _exchange(state, source + start, part, 4 * part + BYTES)
        if own[STATUS] == DONE and own[RANK] == 0:
            for rank in range(own[SIZE]):
                _copy(target + rank * size + start, _slot(own, rank, own[SEQUENCE]), part)
    return own[STATUS]


@njit(nogil=True, cache=True)
def leave(state):
    """Tells all ranks that this one is gone, and wakes those that wait for it."""
    own = _words(state, STATE_WORDS)
    line = own[SHARED] + own[RANK] * RANK_BYTES
    store_shared(line + LEFT, 1)
    wake_between(line + ARRIVED)


@cfunc(ITEM_SIGNATURE, cache=True)
def all_reduce_item(arguments, item, thread):
    """`all_reduce` as one job of a Program: its arguments as words. What became of it stands in the state's STATUS."""
    words = _words(arguments, 4)
    all_reduce(words[0], words[1], words[2], words[3])
