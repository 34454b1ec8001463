"""PlanLoads: the StageLoads of a Plan: how each stage is loaded on the machine that it is on, or moves to."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import ShardwiseError
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.stage_plan import stage_plan
from backend.workers.meeting import Meeting
from backend.workers.worker_messages import Load
from pipeline_ext.failover import StageNeed
from pipeline_ext.messages import LoadStage
from pipeline_ext.peer import Peer
from pipeline_ext.placement import Placeable, place, placeable
from pipeline_ext.stage_needs import replacement, stage_needs


class NoRoomError(ShardwiseError):
    """A machine has no room for a stage that was to move there."""

    code = "no_room"


class PlanLoads:
    """A StageLoads.

    Args:
        settings, facts, plan: the engine's.
        secret: of the engine process.
        offer: what peers are told of the model's files; asked for when a stage goes to one.
    """

    def __init__(
        self,
        settings: EngineSettings,
        facts: ModelFacts,
        plan: Plan,
        secret: bytes,
        offer: Callable[[], bytes] = lambda: b"",
    ) -> None:
        self._settings, self._facts, self._plan = settings, facts, plan
        self._secret, self._offer = secret, offer
        self._replans: dict[tuple[Peer, ...], bool] = {}

    def __len__(self) -> int:
        return len(self._plan.stages)

    @property
    def plan(self) -> Plan:
        """With stages where they are now, or were last tried."""
        return self._plan

    def home(self, stage: int) -> str:
        return self._plan.stages[stage].peer

    def need(self, stage: int) -> StageNeed:
        need = stage_needs(self._plan)[stage]
        return StageNeed(tuple(rank.total for rank in need.ranks), need.cuda)

    def orders(self, stage: int, peer: Peer, others: tuple[int, ...]) -> tuple[LoadStage, ...]:
        if peer.id != self._plan.stages[stage].peer:
            self._move(stage, peer)
        plan = stage_plan(self._plan, stage)
        settings = self._for(peer)
        # The folder is the machine's own; the word tells this start from all others there.
        meeting = Meeting("", secrets.token_hex(12))
        offer = self._offer() if peer.id else b""
        return tuple(
            LoadStage(
                load=Load(settings, plan, rank, self._facts.layers, meeting),
                span=self._plan.stages[stage].span,
                stage=stage,
                offer=offer,
                accepts=stage > 0 and rank == 0,
                secret=self._secret,
            )
            for rank in range(len(plan.ranks))
        )

    def environment(self, stage: int, peer: Peer) -> tuple[tuple[str, str], ...]:
        # Nothing of its own, so that a process that was kept warm will do; threads are in the Plan.
        return ()

    def can_replan(self, peers: tuple[Peer, ...]) -> bool:
        known = self._replans.get(peers)
        if known is None:
            if len(self._replans) > 64:
                self._replans.clear()
            known = self._replans[peers] = self._fits(peers)
        return known

    def _fits(self, peers: tuple[Peer, ...]) -> bool:
        try:
            place(self._settings, self._facts, placeable(peers))
        except ShardwiseError:
            return False
        return True

    def _move(self, stage: int, peer: Peer) -> None:
        moved = replacement(self._plan, stage, Placeable(peer.id, peer.name, peer.machine, peer.link), self._facts)
        if moved is None:
            raise NoRoomError(f"{peer.name or 'This machine'} has no room for stage {stage}.")
        self._plan = moved

    def _for(self, peer: Peer) -> EngineSettings:
        """What a worker may know: nothing that only the head needs."""
        return replace(self._settings, cache_secret=b"", log_file="", peers="")
