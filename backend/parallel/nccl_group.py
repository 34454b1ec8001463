"""NcclGroup: collectives of ranks on GPUs of their own over torch's NCCL. Has not run on several GPUs yet."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work
from torch.distributed.distributed_c10d import AllreduceOptions, GatherOptions

from backend.executor import DeviceLostError
from backend.parallel.losses import Place, describe, lost
from backend.parallel.rendezvous import Rendezvous
from backend.parallel.watchdog import Watchdog

MEANS = "nccl"


class NcclGroup:
    """Made on every rank at once. Calls put work into the current stream and return."""

    def __init__(self, meeting: Rendezvous, device: torch.device, limit: float) -> None:
        """device: this rank's own GPU. limit: seconds after which the process ends (`watchdog`).

        Raises DeviceLostError where the ranks cannot be connected.
        """
        # Not in builds of torch without CUDA.
        from torch.distributed import ProcessGroupNCCL

        self._meeting = meeting
        self._place = Place(MEANS, device, limit)
        self._watchdog = Watchdog(limit, lambda what, waited: describe(meeting, self._place, what, waited))
        options = ProcessGroupNCCL.Options()
        # NCCL's own watchdog only ends the process, without a word that helps: it comes later than ours.
        options._timeout = timedelta(seconds=2 * limit)
        peers = meeting.peers
        try:
            with self._watchdog.watching("connect"):
                # Its methods are missing from torch's stubs.
                self._group: Any = ProcessGroupNCCL(meeting.prefixed(MEANS), peers.rank, peers.size, options)
                self._group.eager_connect_single_device(device)
        except RuntimeError as error:
            self._watchdog.close()
            raise self._loss("connect", error) from error
        self._all_reduce_options, self._gather_options = AllreduceOptions(), GatherOptions()
        # In the caller's stream: no events between it and one of NCCL's own.
        self._all_reduce_options.asyncOp = self._gather_options.asyncOp = False
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
        self._run(f"all_reduce of {x.nbytes} bytes", lambda: self._group.allreduce([x], self._all_reduce_options))

    def gather(self, x: Tensor) -> Tensor | None:
        out = x.new_empty((self.size, *x.shape)) if self.rank == 0 else None
        into = [] if out is None else [list(out.unbind(0))]
        self._run(f"gather of {x.nbytes} bytes", lambda: self._group.gather(into, [x], self._gather_options))
        return out

    def close(self) -> None:
        self._watchdog.close()
        # Unlike shutdown, it does not wait for ranks that may be gone.
        self._group.abort()

    def _run(self, what: str, begin: Callable[[], Work | None]) -> None:
        try:
            work = begin()
            if work is not None:
                # Lets the current stream wait, where it is not the one used; not this thread.
                work.wait()
        except RuntimeError as error:
            raise self._loss(what, error) from error
        mark_stream(self._watchdog, what)

    def _loss(self, what: str, error: RuntimeError) -> DeviceLostError:
        return lost(self._meeting, self._place, what, str(error).strip().partition("\n")[0])


def mark_stream(watchdog: Watchdog, what: str) -> None:
    """Marks the current stream for the watchdog, where it wants that and the stream is not being captured."""
    if watchdog.wants_mark and not torch.cuda.is_current_stream_capturing():
        event = torch.cuda.Event()
        event.record()
        watchdog.mark(event, what)
