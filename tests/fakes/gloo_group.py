"""A plain Group over torch's Gloo for ranks that are processes of a test, which meet in a file they all see."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import GatherOptions


class PlainGlooGroup:
    """Made on every rank at once; on loopback only."""

    def __init__(self, rank: int, size: int, meeting: Path, seconds: float) -> None:
        """meeting: a file that no earlier group has met in. seconds: how long a rank waits for the others."""
        self.rank, self.size = rank, size
        gloo: Any = ProcessGroupGloo  # its stubs leave most out
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname="127.0.0.1", lazy_init=False)]
        options._threads = 1
        options._timeout = timedelta(seconds=seconds)
        store = FileStore(str(meeting), size)
        store.set_timeout(timedelta(seconds=seconds))
        self._group: Any = gloo(store, rank, size, options)

    def all_reduce(self, x: Tensor) -> None:
        self._group.allreduce([x]).wait()

    def gather(self, x: Tensor) -> Tensor | None:
        options = GatherOptions()
        options.rootRank = 0
        out = torch.empty((self.size, *x.shape), dtype=x.dtype) if self.rank == 0 else None
        self._group.gather([] if out is None else [list(out.unbind(0))], [x], options).wait()
        return out

    def close(self) -> None:
        self._group.shutdown()
