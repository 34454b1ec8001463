"""StageSlot: one stage of a pipeline: who serves it, who is getting ready to, and what is made of that for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from backend.standing import RankStanding, Standing
from pipeline_ext.failover import Situation
from pipeline_ext.failover_facts import candidates_of
from pipeline_ext.peer import Peer
from pipeline_ext.pipeline_limits import PipelineLimits
from pipeline_ext.stage_crew import StageCrew
from pipeline_ext.stage_loads import StageLoads


@dataclass(slots=True)
class StageSlot:
    """One stage: who serves it, and who is getting ready to."""

    stage: int
    home: str
    crew: StageCrew | None = None
    successor: StageCrew | None = None
    since: float = 0.0
    again: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    retry_at: dict[str, float] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    trouble: str = ""

    def fail_at(self, peer: str, now: float, retry: float) -> None:
        """The stage could not be brought up there, or kept; it may be tried again a little later."""
        self.failures[peer] = self.failures.get(peer, 0) + 1
        self.retry_at[peer] = now + retry * self.failures[peer]

    def forgive(self, now: float, forget: float) -> None:
        """What failed long ago counts no more."""
        for peer in [peer for peer, at in self.retry_at.items() if now > at + forget]:
            del self.retry_at[peer], self.failures[peer]
            self.refused.discard(peer)


def situation_of(
    slot: StageSlot,
    slots: Sequence[StageSlot],
    loads: StageLoads,
    peers: tuple[Peer, ...],
    limits: PipelineLimits,
    now: float,
    *,
    leaving: bool,
) -> Situation:
    """What `failover` decides by."""
    slot.forgive(now, limits.forget)
    held: dict[str, list[int]] = {}
    for other in slots:
        for crew in (other.crew, other.successor):
            if crew is not None:
                held.setdefault(crew.peer.id, []).append(other.stage)
    needs = [loads.need(stage) for stage in range(len(slots))]
    return Situation(
        stage=slot.stage,
        need=needs[slot.stage],
        candidates=candidates_of(peers, needs, held, slot.stage, slot.failures, slot.retry_at, slot.refused),
        now=now,
        since=slot.since,
        home=slot.home,
        most_failures=limits.failures,
        wait=limits.wait,
        replan=loads.can_replan(tuple(peer for peer in peers if peer.health == "alive")),
        leaving=leaving,
    )


def standing_of(slots: Sequence[StageSlot], loads: StageLoads) -> Standing:
    """All ranks and what people should know."""
    ranks: list[RankStanding] = []
    for slot in slots:
        crew = slot.crew or slot.successor
        for worker in crew.workers if crew is not None else ("",) * len(loads.need(slot.stage).ranks):
            ranks.append(_rank(len(ranks), slot, crew, worker))
    return Standing(tuple(ranks), "; ".join(slot.trouble for slot in slots if slot.trouble))


def _rank(number: int, slot: StageSlot, crew: StageCrew | None, worker: str) -> RankStanding:
    state = "ready" if slot.crew is not None and crew is slot.crew else "lost"
    if crew is None:
        return RankStanding(number, slot.stage, slot.home, 0, "", 0, state)
    loaded = crew.loaded.get(worker)
    device, weights = ("", 0) if loaded is None else (loaded.device, loaded.weights_bytes)
    return RankStanding(number, slot.stage, crew.peer.id, crew.pids.get(worker, 0), device, weights, state)
