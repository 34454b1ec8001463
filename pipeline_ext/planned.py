"""planned_over: the Plan of a model's files over this machine and its peers, with what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backend.compose_engine import Planned, planned
from backend.engine_settings import EngineSettings
from backend.hardware.machine import Machine, read_machine
from backend.hardware.peer_probe import probed
from backend.library.checks import check
from backend.planner.model_facts import ModelFacts
from backend.planner.staged.placing import place_elsewhere
from pipeline_ext.peer import Peer
from pipeline_ext.placement import Placeable, place, placeable


@dataclass(frozen=True, slots=True)
class PlannedOver:
    """`found` has the Plan; `machines` are those that it was placed over, this one first."""

    found: Planned
    machines: tuple[Placeable, ...]


def planned_over(settings: EngineSettings, peers: Sequence[Peer] = ()) -> PlannedOver:
    """Checks the files and reads this machine; takes no memory for weights. `peers` may have the head among them.

    Raises:
        ShardwiseError: a broken or unsupported model, a setting that cannot be obeyed, too little memory.
    """
    # Both load torch and transformers, which the modules that only name this one need not pay for.
    from backend.surgery.describe import describe
    from backend.surgery.load import read_config

    check(settings.files)
    return place_over(settings, describe(read_config(settings.files)), probed(read_machine()), peers)


def place_over(
    settings: EngineSettings, facts: ModelFacts, machine: Machine, peers: Sequence[Peer] = ()
) -> PlannedOver:
    """The same for facts that are known. Raises ShardwiseError as `planned_over` does.

    Where the settings name machines, this one has no part of the Plan.
    """
    others = tuple(one for one in placeable(peers) if one.id)
    if settings.machines:
        plan = place_elsewhere(settings, facts, [one.site for one in others])
        return PlannedOver(Planned(facts, machine, plan, unmeasured=False), others)
    machines = (Placeable("", "this machine", machine), *others)
    plan = place(settings, facts, machines)
    if not plan.stages:
        # One stage: formats of K and V may have been measured here.
        return PlannedOver(planned(settings, facts, machine), machines)
    return PlannedOver(Planned(facts, machine, plan, unmeasured=False), machines)
