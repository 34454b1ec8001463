"""GlooGroup: collectives of ranks on one machine over torch's Gloo, for tensors in main memory; on loopback only."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo
from torch.distributed.distributed_c10d import AllreduceOptions, GatherOptions

from backend.parallel.losses import Place, late, lost
from backend.parallel.rendezvous import Rendezvous

LOOPBACK = "127.0.0.1"
MEANS = "gloo"
# Gloo's clock is not ours.
NEARLY = 0.95
Result = TypeVar("Result")


class GlooGroup:
    """Made on every rank at once.

    A process group of its own, not torch's default one: that has wrappers around every call, and a state per process.
    """

    def __init__(self, meeting: Rendezvous, limit: float, purpose: str = MEANS) -> None:
        """limit: seconds that a rank waits for the others in one call. purpose: a word that tells groups of a meeting
        apart.

        Raises DeviceLostError where a rank does not come.
        """
        self._meeting = meeting
        self._place = Place(MEANS, torch.device("cpu"), limit)
        options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
        # Eager links: lazy ones could hang after a peer's death.
        options._devices = [ProcessGroupGloo.create_device(hostname=LOOPBACK, lazy_init=False)]
        options._threads = 1
        options._timeout = timedelta(seconds=limit)
        peers = meeting.peers
        # Its methods are missing from torch's stubs.
        self._group: Any = self._watched(
            "connect", lambda: ProcessGroupGloo(meeting.prefixed(purpose), peers.rank, peers.size, options)
        )
        self._all_reduce_options, self._gather_options = AllreduceOptions(), GatherOptions()
        self._gather_options.rootRank = 0

    @property
    def rank(self) -> int:
        return self._meeting.peers.rank

    @property
    def size(self) -> int:
        return self._meeting.peers.size

    @property
    def name(self) -> str:
        return MEANS

    def all_reduce(self, x: Tensor) -> None:
        self._watched(
            f"all_reduce of {x.nbytes} bytes", lambda: self._group.allreduce([x], self._all_reduce_options).wait()
        )

    def gather(self, x: Tensor) -> Tensor | None:
        out = x.new_empty((self.size, *x.shape)) if self.rank == 0 else None
        into = [] if out is None else [list(out.unbind(0))]
        self._watched(f"gather of {x.nbytes} bytes", lambda: self._group.gather(into, [x], self._gather_options).wait())
        return out

    def close(self) -> None:
        self._group.shutdown()

    def _watched(self, what: str, run: Callable[[], Result]) -> Result:
        """Runs a call that ends at Gloo's own limit, and says what Gloo's errors do not."""
        began = time.monotonic()
        try:
            return run()
        except RuntimeError as error:
            waited = time.monotonic() - began
            if waited >= self._place.limit * NEARLY:
                raise late(self._meeting, self._place, what, waited) from error
            raise lost(self._meeting, self._place, what, _reason(error)) from error


def _reason(error: RuntimeError) -> str:
    """What Gloo says without the place in its sources before it, and the advice after it."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).partition("\n")[0]).partition(". ")[0]
