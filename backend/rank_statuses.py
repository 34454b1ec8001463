"""What is shown of an engine's ranks, as a pure function of what it has told."""

from __future__ import annotations

from backend.engine_client import EngineState, RankStatus
from backend.messages import Ready
from backend.standing import RankStanding, Standing


def rank_statuses(ready: Ready, standing: Standing | None, state: EngineState) -> tuple[RankStatus, ...]:
    """The newest standing's ranks, or those of the start, all on this machine, where none was told."""
    if standing is not None:
        return tuple(_status(one, state) for one in standing.ranks)
    ranks = zip(ready.rank_pids, ready.devices, ready.weights_bytes, strict=True)
    return tuple(
        RankStatus(rank=rank, pid=pid, device=device, state=state, weights_bytes=weights)
        for rank, (pid, device, weights) in enumerate(ranks)
    )


def _status(one: RankStanding, state: EngineState) -> RankStatus:
    return RankStatus(
        rank=one.rank,
        pid=one.pid,
        device=one.device,
        state=one.state if one.state == "lost" else state,
        weights_bytes=one.weights_bytes,
        stage=one.stage,
        peer=one.peer,
    )
