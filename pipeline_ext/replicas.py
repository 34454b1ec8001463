"""place_replicas: which machines have which copy of a model, as a Plan for each. Pure; running them is not ours.

Copies answer independently, so they share requests: more throughput, and one is there when another is lost. They are
alike in all that a client could notice: formats, dtype, and how long a sequence may get.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError, ShardwiseError
from backend.planner.kv_choice import KVChoice
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.ranks import USEFUL_CONTEXT
from backend.planner.staged.placing import place_elsewhere
from pipeline_ext.placement import Placeable, place


def place_replicas(
    settings: EngineSettings,
    facts: ModelFacts,
    machines: Sequence[Placeable],
    replicas: int | None = 1,
    *,
    measured: KVChoice | None = None,
) -> tuple[Plan, ...]:
    """A Plan for each copy, the first of which has the head; None takes as many as machines hold.

    No machine has parts of two copies. A Plan of a copy that lies on one peer has one stage, which names it.

    Raises:
        SettingError: machines hold fewer copies than were asked for; or as `place`.
        OutOfMemoryError: not even one fits.
    """
    first = place(settings, facts, machines, measured=measured)
    copies = [first]
    alike = replace(settings, dtype=first.dtype, weights=first.weight_format, kv_format=first.kv_format)
    least = settings.max_context or min(USEFUL_CONTEXT, first.max_context)
    refused: ShardwiseError | None = None
    left = _without(machines, first)
    while left and (replicas is None or len(copies) < replicas):
        try:
            plan = place_elsewhere(alike, facts, [one.site for one in left])
        except (SettingError, OutOfMemoryError) as error:
            refused = error
            break
        if plan.max_context < least:
            break
        copies.append(plan)
        left = _without(left, plan)
    if replicas is not None and len(copies) < replicas:
        raise _too_few(copies, replicas, left, refused)
    shortest = min(copy.max_context for copy in copies)
    return tuple(_numbered(copy, number, copies, shortest) for number, copy in enumerate(copies, start=1))


def _without(machines: Sequence[Placeable], plan: Plan) -> list[Placeable]:
    """Those that have no part of the copy; a Plan without stages has the head."""
    taken = {stage.peer for stage in plan.stages} or {""}
    # The head without a part of the first copy is left to it: the engine computes nothing, but somebody works there.
    return [one for one in machines if one.id and one.id not in taken]


def _numbered(copy: Plan, number: int, copies: Sequence[Plan], context: int) -> Plan:
    if len(copies) == 1:
        return copy
    reasons = [*copy.reasons, f"This is copy {number} of {len(copies)}, on {_where(copy)}."]
    if context < copy.max_context:
        reasons.append(f"The context is {context} of all copies, as long as the smallest holds.")
    return replace(copy, max_context=context, reasons=tuple(reasons))


def _where(plan: Plan) -> str:
    return ", ".join(dict.fromkeys(stage.name for stage in plan.stages)) or "this machine"


def _too_few(
    copies: Sequence[Plan], asked: int, left: Sequence[Placeable], refused: ShardwiseError | None
) -> SettingError:
    held = "; ".join(f"copy {number} on {_where(copy)}" for number, copy in enumerate(copies, start=1))
    names = ", ".join(one.name for one in left)
    spare = f" {names} cannot hold another: {refused.what}" if names and refused else " No machine is left for another."
    return SettingError(
        f"--replicas {asked} is more than these machines hold.",
        f"They hold {len(copies)}: {held}.{spare}",
        f"Use --replicas {len(copies)} or auto, or join another machine (`shardwise peers invite`).",
    )
