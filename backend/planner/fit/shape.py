"""Shape: how a model is multiplied, cut and divided, and over which devices; which shapes there are is `shapes`'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Seat:
    """The devices of one stage: GPUs by their positions in `Machine.gpus`; none for the machine's processor."""

    machine: int
    gpus: tuple[int, ...] = ()

    @property
    def ranks(self) -> int:
        return max(1, len(self.gpus))


@dataclass(frozen=True, slots=True)
class Shape:
    """One way over the devices.

    Attributes:
        seats: of each replica, of each of its stages.
        experts: how they are divided; "auto" leaves it to the planner.
        own: whether this is what `shardwise serve` would make of the first machine with --tp alone.
        free: whether each stage's ranks are left to the planner: machines that have unlike counts of GPUs.
    """

    seats: tuple[tuple[Seat, ...], ...]
    experts: Literal["auto", "tensor", "expert"] = "auto"
    own: bool = False
    free: bool = False

    @property
    def replicas(self) -> int:
        return len(self.seats)

    @property
    def stages(self) -> int:
        return len(self.seats[0])

    @property
    def tensor(self) -> int:
        return self.seats[0][0].ranks

    @property
    def devices(self) -> int:
        return sum(seat.ranks for replica in self.seats for seat in replica)
