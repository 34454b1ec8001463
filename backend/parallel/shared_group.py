"""SharedGroup: collectives of ranks on one machine over memory they share, for tensors in main memory.

Its reference is `gloo_group`; the exchange itself, and how it waits, is `exchange`'s.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy
import torch
from torch import Tensor

from backend.executor import DeviceLostError
from backend.parallel import exchange
from backend.parallel.losses import Place, late, lost
from backend.parallel.rendezvous import Rendezvous

# A part of a large tensor: two slots of each of two ranks fit into a core's second-level cache.
SLOT_BYTES = 128 * 1024
# About 50 µs awake: longer than what ranks of equal shares differ by in a layer, and twice what a sleep costs. Ranks
# that happen to be on one core lose all of it; where ranks outnumber cores, they always are, so they hardly wait awake.
SPINS, FEW_SPINS = 2000, 50
# How long a rank sleeps between two looks at who is still there, in nanoseconds.
SLICE_NANOSECONDS = 20_000_000
MEANS = "shared"
KINDS = {torch.float32: exchange.FLOAT32, torch.bfloat16: exchange.BFLOAT16}


class SharedGroup:
    """Made on every rank at once. Sums bfloat16, float16 and float32, in float32."""

    def __init__(self, meeting: Rendezvous, limit: float, cores: int | None = None) -> None:
        """limit: seconds that a rank waits for the others in one call. cores: those the ranks share, else counted.

        Raises OSError where processes may not share memory this way; DeviceLostError where a rank does not come.
        """
        self._meeting = meeting
        self._place = Place(MEANS, torch.device("cpu"), limit)
        self._size = meeting.peers.size
        self._memory = _shared_memory(meeting, self._size * (exchange.RANK_BYTES + 2 * SLOT_BYTES))
        self._words = _state(self._memory, meeting, limit, cores or len(os.sched_getaffinity(0)))
        self._state: int = self._words[0].ctypes.data
        self._closed = False

    @property
    def rank(self) -> int:
        return self._meeting.peers.rank

    @property
    def size(self) -> int:
        return self._size

    @property
    def name(self) -> str:
        return MEANS

    def all_reduce(self, x: Tensor) -> None:
        kind = KINDS.get(x.dtype)
        if kind is None:
            self._all_reduce_widened(x)
            return
        _check(x)
        status = exchange.all_reduce(self._state, x.data_ptr(), x.numel(), kind)
        if status:
            raise self._failure(f"all_reduce of {x.nbytes} bytes")

    def gather(self, x: Tensor) -> Tensor | None:
        _check(x)
        out = x.new_empty((self._size, *x.shape)) if self.rank == 0 else None
        target = 0 if out is None else out.data_ptr()
        status = exchange.gather(self._state, target, x.data_ptr(), x.nbytes)
        if status:
            raise self._failure(f"gather of {x.nbytes} bytes")
        return out

    def job(self, x: Tensor) -> tuple[Any, tuple[int, int, int, int]]:
        """all_reduce of `x`, bfloat16 or float32, as a Program's job: its item function and arguments.

        It cannot raise: `check` has to be called after the Program.
        """
        _check(x)
        return exchange.all_reduce_item, (self._state, x.data_ptr(), x.numel(), KINDS[x.dtype])

    def check(self) -> None:
        """Raises DeviceLostError where a job has failed."""
        if self._words[0][exchange.STATUS]:
            raise self._failure("all_reduce")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            exchange.leave(self._state)
            # The memory itself goes with the last reference: a view of it may still be looked at.

    def _all_reduce_widened(self, x: Tensor) -> None:
        """Sums in float32 what the machine code does not know."""
        if not x.is_floating_point() or x.itemsize > 4:
            raise TypeError(f"{x.dtype} is not summed over {MEANS}")
        wide = x.float()
        self.all_reduce(wide)
        x.copy_(wide)

    def _failure(self, what: str) -> DeviceLostError:
        status, culprit = (int(self._words[0][word]) for word in (exchange.STATUS, exchange.CULPRIT))
        if status == exchange.LATE:
            return late(self._meeting, self._place, what, self._place.limit)
        if status == exchange.MISMATCH:
            return lost(self._meeting, self._place, what, f"rank {culprit} made another call")
        return lost(self._meeting, self._place, what, f"rank {culprit} is gone")


def _check(x: Tensor) -> None:
    if not x.is_contiguous() or x.device.type != "cpu":
        raise ValueError("a collective takes contiguous tensors in main memory")


def _shared_memory(meeting: Rendezvous, size: int) -> mmap.mmap:
    """The same `size` bytes of zeros in all ranks, without a name in any file system: nothing is left by a kill."""
    peers, store = meeting.peers, meeting.prefixed("shared")
    if peers.rank == 0:
        file = os.memfd_create("shardwise-ranks", os.MFD_CLOEXEC)
        os.ftruncate(file, size)
        store.set("file", str(file))
    else:
        file = os.open(f"/proc/{peers.pids[0]}/fd/{int(store.get('file'))}", os.O_RDWR | os.O_CLOEXEC)
    memory = mmap.mmap(file, size)
    if peers.rank == 0:
        # The descriptor has to stay until everybody has opened it.
        for rank in range(1, peers.size):
            store.get(f"open/{rank}")
    else:
        store.set(f"open/{peers.rank}", "")
    os.close(file)
    return memory


def _state(memory: mmap.mmap, meeting: Rendezvous, limit: float, cores: int) -> tuple[Any, ...]:
    """This rank's words, first; then all the arrays they point to, which have to live as long."""
    peers = meeting.peers
    shared = numpy.frombuffer(memory, numpy.uint8)
    scratch = numpy.zeros(exchange.BLOCK, numpy.float32)
    # seconds and nanoseconds of a sleep; what the clock writes; pollfds, and behind them a time of nothing.
    times = numpy.array([0, SLICE_NANOSECONDS, 0, 0], numpy.int64)
    files = numpy.zeros(peers.size + 2, numpy.int64)
    for rank in range(peers.size):
        # A negative descriptor is passed over; POLLIN is 1, in the third 16 bits.
        files[rank] = peers.files.get(rank, 0xFFFFFFFF) | 1 << 32
    words = numpy.zeros(exchange.STATE_WORDS, numpy.int64)
    words[exchange.RANK], words[exchange.SIZE] = peers.rank, peers.size
    words[exchange.SHARED] = shared.ctypes.data
    words[exchange.SLOTS] = shared.ctypes.data + peers.size * exchange.RANK_BYTES
    words[exchange.SLOT_BYTES] = SLOT_BYTES
    words[exchange.SPINS] = SPINS if peers.size <= cores else FEW_SPINS
    words[exchange.LIMIT] = int(limit * 1e9)
    words[exchange.SLICE], words[exchange.CLOCK] = times.ctypes.data, times.ctypes.data + 16
    words[exchange.FILES], words[exchange.SCRATCH] = files.ctypes.data, scratch.ctypes.data
    return words, shared, scratch, times, files
