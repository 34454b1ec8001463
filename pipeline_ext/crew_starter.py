"""CrewStarter: starts the workers of a stage on a machine, and looks now and then which machines there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backend.errors import ShardwiseError
from pipeline_ext.cluster import Cluster, SpawnError, SpawnOrder
from pipeline_ext.peer import Peer
from pipeline_ext.pipeline_limits import PipelineLimits
from pipeline_ext.stage_crew import StageCrew
from pipeline_ext.stage_loads import StageLoads


@dataclass(frozen=True, slots=True)
class Door:
    """Where workers of each machine come to, and what they show there."""

    place: Callable[[str], str]
    secret: bytes


class CrewStarter:
    """Of one pipeline. `now` is the pipeline's own time."""

    def __init__(self, loads: StageLoads, cluster: Cluster, door: Door, limits: PipelineLimits) -> None:
        self._loads, self._cluster, self._door, self._limits = loads, cluster, door, limits
        self._started = 0
        self._peers: tuple[Peer, ...] = ()
        self._looked = float("-inf")

    def is_time_to_look(self, now: float) -> bool:
        """Whether what `machines` would say is not what it said last."""
        return now - self._looked >= self._limits.look

    def machines(self, now: float) -> tuple[Peer, ...]:
        """All that are known, asked for at most each `look` seconds."""
        if self.is_time_to_look(now):
            self._peers, self._looked = self._cluster.peers(), now
        return self._peers

    def look_again(self) -> None:
        """What was known a moment ago is not true any more."""
        self._looked = float("-inf")

    def start(self, stage: int, peer_id: str, others: tuple[int, ...], now: float) -> StageCrew | str:
        """A crew for this stage, on its way to the door; or why there is none. `others`: the stages there already."""
        peer = next((peer for peer in self.machines(now) if peer.id == peer_id), None)
        if peer is None:
            return f"the machine of stage {stage} is not known any more"
        try:
            orders = self._loads.orders(stage, peer, others)
            crew = StageCrew(stage, peer, self._names(stage, len(orders)), orders, self._limits, now)
            place, environment = self._door.place(peer_id), self._loads.environment(stage, peer)
            self._cluster.spawn(peer_id, SpawnOrder(crew.workers, place, self._door.secret, environment))
        except (ShardwiseError, SpawnError) as error:
            return f"stage {stage} could not be started on {peer.name or 'this machine'}: {error}"
        return crew

    def _names(self, stage: int, count: int) -> tuple[str, ...]:
        """Never used before."""
        self._started += 1
        return tuple(f"stage-{stage}-{self._started}-{rank}" for rank in range(count))
