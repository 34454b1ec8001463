"""PeersView: what people are shown of the machines: `peers list --json`, `GET /peers` and the screen. Plain data.

It is made from the hub's peers and from the Plans of a server's engines; what is shown of it, and how, is the faces'.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from backend.planner.plan import Plan
from pipeline_ext.peer import Health, Peer


class GpuView(Struct, frozen=True):
    """One GPU: `total` and `free` are bytes."""

    name: str
    total: int
    free: int


class PlacedStage(Struct, frozen=True):
    """A stage that stands on a machine: layers `first` to before `stop`, of `of`; `stage` counts from 0."""

    model: str
    stage: int
    first: int
    stop: int
    of: int


class PeerView(Struct, frozen=True):
    """One machine.

    Attributes:
        id: empty for the head itself, which comes first.
        health: alive, silent (not heard for 3 s), lost, or leaving.
        note: what is the matter with it, for people; empty where nothing is.
        cores: that its processes may use.
        memory_total, memory_available: bytes of main memory.
        latency: seconds one way for a small message; None for the head, and until it has been measured.
        bandwidth: bytes a second; None likewise.
        stages: what the engines of the asked server have there.
    """

    id: str
    name: str
    address: str
    version: str
    health: Health
    gpus: tuple[GpuView, ...]
    cores: int
    memory_total: int
    memory_available: int
    latency: float | None = None
    bandwidth: float | None = None
    stages: tuple[PlacedStage, ...] = ()
    note: str = ""


class PeersView(Struct, frozen=True):
    """All machines.

    Attributes:
        state: none (no hub runs: this machine is alone), ready, or away (a hub was known and does not answer: the
            peers are the last known).
        address: where peers reach the head, HOST:PORT; empty where no hub runs.
        problem: why the peers are not usable, for people; empty where they are.
        open_ports: of Ray on this machine, which listen on every address, behind its token.
        peers: the head first.
    """

    state: str
    address: str = ""
    problem: str = ""
    open_ports: tuple[int, ...] = ()
    peers: tuple[PeerView, ...] = ()


def peer_view(peer: Peer, plans: Mapping[str, Plan], note: str = "") -> PeerView:
    """A machine with the stages that these Plans, by model name, put there."""
    machine = peer.machine
    return PeerView(
        id=peer.id,
        name=peer.name,
        address=peer.address,
        version=peer.version,
        health=peer.health,
        gpus=tuple(GpuView(gpu.name, gpu.total, gpu.free) for gpu in machine.gpus),
        cores=machine.cpu.usable_cores,
        memory_total=machine.memory.total,
        memory_available=machine.memory.available,
        latency=peer.link.latency if peer.link else None,
        bandwidth=peer.link.bandwidth if peer.link else None,
        stages=tuple(stage for model, plan in plans.items() for stage in _placed(peer.id, model, plan)),
        note=note,
    )


def _placed(peer: str, model: str, plan: Plan) -> list[PlacedStage]:
    return [
        PlacedStage(model, number, stage.span.first, stage.span.stop, stage.span.of)
        for number, stage in enumerate(plan.stages)
        if stage.peer == peer
    ]
