"""place: which peers take which layers of a model, as a Plan. Pure; it reads neither clocks nor sockets.

What is decided stands in `backend.planner.staged`, where `fit` asks for it, too. What a lost stage needs, and whether
another machine has it, is `stage_needs`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from backend.engine_settings import EngineSettings
from backend.hardware.machine import Machine
from backend.planner.kv_choice import KVChoice
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.staged.placing import place_stages
from backend.planner.staged.site import Site, measured_way
from pipeline_ext.peer import Peer, PeerLink


class Placeable(Struct, frozen=True):
    """A machine that stages may be put on: a healthy peer, or the head, whose id is empty and which has no link."""

    id: str
    name: str
    machine: Machine
    link: PeerLink | None = None

    @property
    def site(self) -> Site:
        way = None if self.link is None else measured_way(self.name, self.link.latency, self.link.bandwidth)
        return Site(self.id, self.name, self.machine, way)


def placeable(peers: Iterable[Peer]) -> tuple[Placeable, ...]:
    """Those that are alive, the head first."""
    alive = [Placeable(peer.id, peer.name, peer.machine, peer.link) for peer in peers if peer.health == "alive"]
    return tuple(sorted(alive, key=lambda one: bool(one.id)))


def place(
    settings: EngineSettings,
    facts: ModelFacts,
    machines: Sequence[Placeable],
    *,
    weights_bytes: int | None = None,
    measured: KVChoice | None = None,
    held: str | None = None,
) -> Plan:
    """The Plan of a model over machines, the head first among them. One stage on the head makes it `decide`'s.

    Without --pp or --layers, a model that fits the head with a useful context stays there; else as few stages as fit,
    the fastest of these. What was asked for explicitly is obeyed or refused, never changed. The other arguments are
    `decide`'s.

    Raises:
        SettingError: what was asked for cannot be obeyed, whatever the memory.
        OutOfMemoryError: the model fits in no way that was asked for.
    """
    sites = tuple(one.site for one in machines)
    return place_stages(settings, facts, sites, weights_bytes=weights_bytes, measured=measured, held=held)
