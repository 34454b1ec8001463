"""failover_facts: candidates for a stage, from machines as the hub knows them and from what stages hold there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from pipeline_ext.failover import Candidate, StageNeed
from pipeline_ext.peer import Peer


def candidates_of(
    peers: Sequence[Peer],
    needs: Sequence[StageNeed],
    held: Mapping[str, Sequence[int]],
    stage: int,
    failures: Mapping[str, int],
    retry_at: Mapping[str, float],
    refused: AbstractSet[str],
) -> tuple[Candidate, ...]:
    """Every machine as it looks for this stage. `held` are the stages that machines have now."""
    return tuple(
        Candidate(
            peer=peer.id,
            name=peer.name,
            health=peer.health,
            memory=_memory(peer, [needs[one] for one in held.get(peer.id, ())]),
            gpus=_gpus(peer, [needs[one] for one in held.get(peer.id, ())]),
            stages=tuple(one for one in held.get(peer.id, ()) if one != stage),
            latency=0.0 if peer.link is None else peer.link.latency,
            failures=failures.get(peer.id, 0),
            retry_at=retry_at.get(peer.id, 0.0),
            refused=peer.id in refused,
        )
        for peer in peers
    )


def _memory(peer: Peer, holding: Sequence[StageNeed]) -> int:
    """What is free as last read, which may have been before what stages hold was taken."""
    memory = peer.machine.memory
    taken = sum(sum(need.ranks) for need in holding if not need.on_gpu)
    return max(0, min(memory.available, memory.total - taken))


def _gpus(peer: Peer, holding: Sequence[StageNeed]) -> tuple[int, ...]:
    """The same of each GPU: ranks of one stage are on the emptiest ones, the largest first."""
    totals = [gpu.total for gpu in peer.machine.gpus]
    for need in holding:
        if not need.on_gpu:
            continue
        order = sorted(range(len(totals)), key=lambda place: -totals[place])
        for place, rank in zip(order, sorted(need.ranks, reverse=True), strict=False):
            totals[place] -= rank
    return tuple(max(0, min(gpu.free, total)) for gpu, total in zip(peer.machine.gpus, totals, strict=True))
