"""ThreadGroup: ranks as threads of one process, for tests of what a model does between two collectives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PATIENCE = 60.0


@dataclass
class _Meeting:
    """What ranks that meet leave for each other."""

    size: int
    tensors: list[Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensors = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=PATIENCE)
        self.calls = 0


class ThreadGroup:
    """One rank's end; see `backend.parallel.group.Group`."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank, self.size = rank, meeting.size
        self._meeting = meeting

    @property
    def calls(self) -> int:
        """Collectives so far."""
        return self._meeting.calls

    def all_reduce(self, x: Tensor) -> None:
        assert x.is_contiguous()
        tensors = self._exchange(x)
        total = torch.stack(tensors).sum(0).to(x.dtype) if x.numel() else x
        self._meeting.barrier.wait()
        x.copy_(total)

    def gather(self, x: Tensor) -> Tensor | None:
        tensors = self._exchange(x)
        gathered = torch.stack(tensors) if self.rank == 0 else None
        self._meeting.barrier.wait()
        return gathered

    def close(self) -> None:
        self._meeting.barrier.abort()

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._meeting.tensors[self.rank] = x
        self._meeting.barrier.wait()
        if self.rank == 0:
            self._meeting.calls += 1
        given = [one for one in self._meeting.tensors if one is not None]
        assert {(one.shape, one.dtype) for one in given} == {(x.shape, x.dtype)}
        return given


def thread_groups(size: int) -> list[ThreadGroup]:
    meeting = _Meeting(size)
    return [ThreadGroup(rank, meeting) for rank in range(size)]


def on_ranks(groups: list[ThreadGroup], work: Callable[[int], Any]) -> list[Any]:
    """`work(rank)` on a thread for each rank; the first failure ends the others' waiting and is raised."""

    def one(rank: int) -> Any:
        try:
            return work(rank)
        except BaseException:
            groups[rank].close()
            raise

    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(one, rank) for rank in range(len(groups))]
    failures = [future.exception() for future in futures]
    real = [one for one in failures if one is not None and not isinstance(one, threading.BrokenBarrierError)]
    if real or any(failures):
        raise (real or [one for one in failures if one is not None])[0]
    return [future.result() for future in futures]
