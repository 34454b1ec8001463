"""Groups of ranks that are threads of one process: real sums, in the order of ranks, without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class ThreadGroup:
    """One rank's end; `sums` counts its all-reduces."""

    def __init__(self, rank: int, board: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.sums = rank, len(board), 0
        self._board, self._barrier = board, barrier

    def all_reduce(self, x: Tensor) -> None:
        self.sums += 1
        x.copy_(self._exchange(x).sum(0))

    def gather(self, x: Tensor) -> Tensor | None:
        everything = self._exchange(x)
        return everything if self.rank == 0 else None

    def close(self) -> None:
        self._barrier.abort()

    def _exchange(self, x: Tensor) -> Tensor:
        self._board[self.rank] = x
        self._barrier.wait()
        everything = torch.stack(self._board)
        self._barrier.wait()
        return everything


def thread_groups(size: int) -> list[ThreadGroup]:
    board, barrier = [torch.empty(0)] * size, threading.Barrier(size, timeout=30)
    return [ThreadGroup(rank, board, barrier) for rank in range(size)]


def run_ranks(run: Callable[[int], Any], size: int) -> list[Any]:
    """What `run(rank)` returns, each rank in a thread of its own; the first error of any is raised."""
    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(run, rank) for rank in range(size)]]
