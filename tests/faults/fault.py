"""Fault: one row of the matrix: how it is made, and what must hold of it. Running rows is `trial`'s."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.cluster import FaultCluster
from tests.hosts import Host


@dataclass
class Scene:
    """Where a fault is made. `problems` are added to by a fault that sees itself that something is wrong."""

    cluster: FaultCluster
    choose: random.Random
    problems: list[str] = field(default_factory=list)

    def holder(self) -> Host:
        """One of the peers that have layers."""
        return self.choose.choice(self.cluster.holders())


def _nothing(scene: Scene) -> None:
    """Needs no preparation."""


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: short, for --only.
        strike: makes it, while answers are being given; may block.
        loses: whether a stage is lost by it, so that `/health` has to say so; where not, every process must be the
            same afterwards.
        prepare: what is done before, with nobody waiting for answers.
        after: what is checked when the answers have ended, before all is repaired.
        links: whether it needs hosts whose links can be cut.
        ends_server: whether the server is to end by it; answers that it does not finish are not lost then.
        missing: why it cannot be made here; empty where it can.
    """

    name: str
    strike: Callable[[Scene], None]
    loses: bool = True
    prepare: Callable[[Scene], None] = _nothing
    after: Callable[[Scene], None] = _nothing
    links: bool = False
    ends_server: bool = False
    missing: Callable[[], str] = lambda: ""
