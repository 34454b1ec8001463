"""Standing: which process on which machine is which rank at this moment, and what is being mended. Plain data."""

from __future__ import annotations

from msgspec import Struct


class RankStanding(Struct, frozen=True):
    """One rank. `stage` counts from 0; `peer` is the id of its machine, empty for the engine's own; `pid` counts there.

    `state` is ready, or lost while it is being replaced.
    """

    rank: int
    stage: int
    peer: str
    pid: int
    device: str
    weights_bytes: int
    state: str = "ready"


class Standing(Struct, frozen=True):
    """All ranks, and what people should know: `trouble` is empty while all is well."""

    ranks: tuple[RankStanding, ...]
    trouble: str = ""

    @property
    def mending(self) -> bool:
        """Whether a rank is lost, so that no tokens come until it has been replaced."""
        return any(rank.state == "lost" for rank in self.ranks)
