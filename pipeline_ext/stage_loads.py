"""StageLoads: what a pipeline has to know of its stages in order to bring one up anywhere. Made of the Plan."""

from __future__ import annotations

from typing import Protocol

from pipeline_ext.failover import StageNeed
from pipeline_ext.messages import LoadStage
from pipeline_ext.peer import Peer


class StageLoads(Protocol):
    """Pure, but for what is needed to offer a stage's files. Called from the engine's thread; must not block."""

    def __len__(self) -> int:
        """How many stages there are."""
        ...

    def home(self, stage: int) -> str:
        """The machine on which the Plan has this stage."""
        ...

    def need(self, stage: int) -> StageNeed:
        """What its ranks take."""
        ...

    def orders(self, stage: int, peer: Peer, others: tuple[int, ...]) -> tuple[LoadStage, ...]:
        """One for each rank, as this machine has to load it; `others` are the stages that it has already.

        Never the same meeting place twice. Raises ShardwiseError where that machine cannot.
        """
        ...

    def environment(self, stage: int, peer: Peer) -> tuple[tuple[str, str], ...]:
        """For the SpawnOrder."""
        ...

    def can_replan(self, peers: tuple[Peer, ...]) -> bool:
        """Whether another Plan over these machines exists; the head is among them."""
        ...
