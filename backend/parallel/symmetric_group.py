"""SymmetricGroup: small all-reduces of GPUs that read each other's memory, by torch's symmetric memory kernels.

Has not run on several GPUs yet. Where it gives wrong or unequal sums (one-shot adds in another order on each rank where
their number is not 2, 4 or 8), the probe of `open_group` leaves it out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from backend.parallel.losses import Place, describe
from backend.parallel.nccl_group import mark_stream
from backend.parallel.rendezvous import Rendezvous
from backend.parallel.watchdog import Watchdog

Shots = Literal["one-shot", "two-shot"]
# Larger tensors are NCCL's.
MOST_BYTES = 1024 * 1024
# What a thread of these kernels loads at once.
ALIGNMENT = 16


class SymmetricGroup:
    """Made on every rank at once; serves only what `serves` says, and gathers nothing.

    one-shot: every rank reads all and adds; two-shot: each adds a part, then all read the parts.
    """

    def __init__(self, meeting: Rendezvous, shots: Shots, device: torch.device, limit: float) -> None:
        """device: this rank's own GPU. limit: seconds after which the process ends (`watchdog`).

        Raises RuntimeError where the GPUs cannot map each other's memory.
        """
        # Not part of every build of torch.
        from torch._C._distributed_c10d import _SymmetricMemory

        self._meeting = meeting
        self._name = shots
        self._place = Place(shots, device, limit)
        self._watchdog = Watchdog(limit, lambda what, waited: describe(meeting, self._place, what, waited))
        peers = meeting.peers
        # torch keeps groups by name for the life of the process: a name is used once.
        self._label = f"shardwise-{shots}-{peers.pids[0]}-{id(self)}"
        self._label = _told(meeting, f"{shots}/label", self._label)
        try:
            with self._watchdog.watching("connect"):
                _SymmetricMemory.set_group_info(self._label, peers.rank, peers.size, meeting.prefixed(shots))
                self._memory = _SymmetricMemory.empty_strided_p2p((MOST_BYTES,), (1,), torch.uint8, device, self._label)
                self._handle = _SymmetricMemory.rendezvous(self._memory, self._label)
        except RuntimeError:
            self._watchdog.close()
            raise

    @property
    def rank(self) -> int:
        return self._meeting.peers.rank

    @property
    def size(self) -> int:
        return self._meeting.peers.size

    @property
    def name(self) -> str:
        return self._name

    def serves(self, x: Tensor) -> bool:
        """The same on all ranks: by type and size only."""
        unit = ALIGNMENT if self._name == "one-shot" else ALIGNMENT * self.size
        return x.dtype in (torch.bfloat16, torch.float32) and x.nbytes <= MOST_BYTES and x.nbytes % unit == 0

    def all_reduce(self, x: Tensor) -> None:
        # Where a view begins is each rank's own: one that the kernels cannot load is moved.
        own = x if x.data_ptr() % ALIGNMENT == 0 else x.clone()
        place = self._memory[: x.nbytes].view(x.dtype).view(x.shape)
        if self._name == "one-shot":
            torch.ops.symm_mem.one_shot_all_reduce_copy_out(place, own, "sum", self._label, own)
        else:
            place.copy_(own)
            torch.ops.symm_mem.two_shot_all_reduce_(place, "sum", self._label)
            own.copy_(place)
        if own is not x:
            x.copy_(own)
        mark_stream(self._watchdog, f"all_reduce of {x.nbytes} bytes")

    def gather(self, x: Tensor) -> Tensor | None:
        raise NotImplementedError("symmetric memory only sums; another group gathers")

    def close(self) -> None:
        self._watchdog.close()


def _told(meeting: Rendezvous, key: str, value: str) -> str:
    """Rank 0's value, on every rank."""
    if meeting.peers.rank == 0:
        meeting.store.set(key, value)
    return meeting.store.get(key).decode()
