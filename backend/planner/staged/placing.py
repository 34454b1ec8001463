"""place_stages: from settings, a model and machines to a Plan with stages, or with one where that does. Pure.

The one place where it is decided; `pipeline_ext.placement` calls it for peers, and `fit` for hardware that may not be
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from msgspec.structs import replace as changed

from backend.engine_settings import EngineSettings
from backend.errors import OutOfMemoryError, SettingError, ShardwiseError
from backend.planner.decide import check_settings, decide
from backend.planner.kv_choice import KVChoice
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.ranks import USEFUL_CONTEXT
from backend.planner.shares import check_ranks
from backend.planner.staged.cutting import best_cut
from backend.planner.staged.draft import StagedDraft
from backend.planner.staged.drafter import Drafter
from backend.planner.staged.plan import Explained, settle_stages
from backend.planner.staged.refusals import check_asked, too_few_devices
from backend.planner.staged.seating import Seating, by_hand, capacity, orders, seatings
from backend.planner.staged.site import Site
from backend.planner.target import Target, choose_target
from backend.planner.weight_choice import first_that_fits
from quant.kv_format import KVFormats

# More stages than this on machines that fewer would do for only lengthen the way of a token.
MOST_STAGES = 16
# Another order of machines must be so much faster than the head first: predictions are no better.
_ORDER_GAIN = 0.98
_UNMEASURED = (
    "K and V are kept in the model's dtype: how accurate fp8 and int8 are can only be measured where one device holds "
    "the whole model."
)


@dataclass(frozen=True, slots=True)
class Placed:
    """A draft of stages with the sentences of whoever chose it. Where it does not fit, it is what comes nearest."""

    staged: StagedDraft
    explained: Explained

    @property
    def fits(self) -> bool:
        return self.staged.tier < 3

    def settle(self) -> Plan:
        """Raises OutOfMemoryError where it does not fit."""
        return settle_stages(self.staged, self.explained)


def place_stages(
    settings: EngineSettings,
    facts: ModelFacts,
    sites: Sequence[Site],
    *,
    weights_bytes: int | None = None,
    measured: KVChoice | None = None,
    held: str | None = None,
) -> Plan:
    """The head is the first site. Arguments and errors beside are `decide`'s.

    Raises:
        SettingError: what was asked for cannot be obeyed, whatever the memory.
        OutOfMemoryError: the model fits in no way that was asked for.
    """
    stages = stages_asked(settings)
    if stages == 1 or (stages is None and len(sites) == 1):
        # Over one machine's GPUs, dividing layers is what nobody need ask for.
        return decide(_alone(settings), facts, sites[0].machine, weights_bytes, measured, held)
    if stages is not None:
        return _first_format(settings, facts, sites, measured, held, stages)
    return _as_few_as_fit(settings, facts, sites, weights_bytes, measured, held)


def place_elsewhere(settings: EngineSettings, facts: ModelFacts, sites: Sequence[Site]) -> Plan:
    """A whole copy of the model on machines none of which is the head: as many stages as asked, else the fewest.

    Raises SettingError or OutOfMemoryError where there is none that holds a useful context.
    """
    asked = stages_asked(settings)
    most = min(MOST_STAGES, len(sites), len(facts.layers))
    useful = settings.max_context or min(USEFUL_CONTEXT, facts.max_positions)
    refused: ShardwiseError | None = None
    for stages in (asked,) if asked else range(1, most + 1):
        try:
            plan = _first_format(settings, facts, sites, None, None, stages)
        except (OutOfMemoryError, SettingError) as error:
            refused = refused or error
            continue
        if plan.max_context >= useful:
            return plan
    raise refused or OutOfMemoryError("A copy of the model does not fit there.", "", "Use fewer --replicas.")


def stages_asked(settings: EngineSettings) -> int | None:
    """How many stages were asked for; None where the plan may say."""
    return len(settings.stage_layers) or settings.pipeline_stages


def draft_stages(
    settings: EngineSettings,
    facts: ModelFacts,
    sites: Sequence[Site],
    stages: int,
    weights: str,
    measured: KVChoice | None = None,
    why: str = "",
) -> Placed:
    """The best way over so many stages with weights in that format; what comes nearest where none fits.

    Raises SettingError where there are too few devices, or the model has too few layers or heads.
    """
    check_asked(settings, facts, stages)
    if settings.tensor_parallel is not None:
        check_ranks(facts, settings.tensor_parallel)
    measured = measured or KVChoice(KVFormats(), _UNMEASURED)
    drafter = Drafter(settings, facts, sites, weights, measured)
    hand = bool(settings.stage_layers)
    found = (by_hand if hand else seatings)(sites, facts, settings, stages)
    if not found:
        raise too_few_devices(sites, settings, stages)
    drafts = list(_drafted(drafter, found))
    if not drafts:
        raise SettingError(
            f"The model cannot be cut into {stages} stages on these machines.",
            "Each stage needs a layer that keeps keys and values, and its ranks need heads of their own.",
            "Use fewer stages.",
        )
    chosen = min(drafts, key=lambda one: one.rank)
    if not hand:
        chosen = _ordered(drafter, chosen)
    dtype_reason, kv_reason, step_reason = drafter.grounds(chosen.seats).reasons
    before = (why, _count_reason(settings, chosen, sites), _left_out(settings, chosen, sites))
    experts = drafter.grounds(chosen.seats).experts
    return Placed(chosen, Explained((*before, dtype_reason, kv_reason, experts), (step_reason,)))


def _drafted(drafter: Drafter, found: Sequence[Seating]) -> Iterator[StagedDraft]:
    """Those that have memory for the weights at all, where any has."""
    rooms = {seats: sum(one.usable for seat in set(seats) for one in drafter.targets(seat)) for seats in found}
    needed = drafter.grounds(found[0]).of(found[0][0]).weights
    enough = [seats for seats in found if rooms[seats] > needed] or [max(found, key=lambda seats: rooms[seats])]
    for seats in enough:
        try:
            yield _cut(drafter, seats)
        except (ValueError, SettingError):
            continue


def _cut(drafter: Drafter, seats: Seating) -> StagedDraft:
    counts = drafter.settings.stage_layers
    if not counts:
        return best_cut(drafter, seats)
    return drafter.at_edges(seats, [sum(counts[:number]) for number in range(len(counts) + 1)])


def _ordered(drafter: Drafter, chosen: StagedDraft) -> StagedDraft:
    """With machines in another order, where that is better by more than a prediction may be wrong."""
    best = chosen
    for seats in orders(chosen.seats):
        try:
            other = best_cut(drafter, seats)
        except (ValueError, SettingError):
            continue
        (tier, figure), (least, old) = other.rank, best.rank
        gained = figure < (old * _ORDER_GAIN if tier < 2 else old - abs(old) * (1 - _ORDER_GAIN))
        if tier < least or (tier == least and gained):
            best = other
    return best


def _first_format(
    settings: EngineSettings,
    facts: ModelFacts,
    sites: Sequence[Site],
    measured: KVChoice | None,
    held: str | None,
    stages: int,
    why: str = "",
) -> Plan:
    """Over so many stages, weights in the format that was asked for, or in the first that fits."""
    check_settings(settings, facts, sites[0].machine)
    wanted = _resident(settings)

    def plan(weights: str, reason: str) -> Plan:
        placed = draft_stages(wanted, facts, sites, stages, weights, measured, why)
        explained = replace(placed.explained, before=(*placed.explained.before, reason))
        return replace(placed, explained=explained).settle()

    return first_that_fits(settings.weights, _oldest(settings, sites), plan, held)


def _as_few_as_fit(
    settings: EngineSettings,
    facts: ModelFacts,
    sites: Sequence[Site],
    weights_bytes: int | None,
    measured: KVChoice | None,
    held: str | None,
) -> Plan:
    """One stage where that holds a useful context; else the fewest that do; else whichever holds most."""
    useful = settings.max_context or min(USEFUL_CONTEXT, facts.max_positions)
    resident = changed(settings, host_weights=0) if settings.host_weights is None else settings
    alone: Plan | None = None
    refused: OutOfMemoryError | None = None
    try:
        alone = decide(_alone(resident), facts, sites[0].machine, weights_bytes, measured, held)
    except OutOfMemoryError as error:
        refused = error
    if alone is not None and (alone.max_context >= useful or settings.kv_pool is not None):
        return alone
    further = None if settings.host_weights or settings.disk_cache else _more(settings, facts, sites, measured, held)
    if further is not None and (alone is None or further.max_context > alone.max_context):
        return further
    if alone is not None:
        return alone
    if settings.host_weights is None:
        return decide(_alone(settings), facts, sites[0].machine, weights_bytes, measured, held)
    raise _nowhere(refused, sites)


def _more(
    settings: EngineSettings,
    facts: ModelFacts,
    sites: Sequence[Site],
    measured: KVChoice | None,
    held: str | None,
) -> Plan | None:
    """The fewest stages that hold a useful context, else the plan with the longest one; None where nothing fits."""
    useful = settings.max_context or min(USEFUL_CONTEXT, facts.max_positions)
    devices = sum(capacity(site, settings) for site in sites)
    best: Plan | None = None
    for stages in range(2, min(MOST_STAGES, devices, len(facts.layers)) + 1):
        why = f"The model and a context do not fit {sites[0].name} alone: its layers lie on {stages} stages."
        try:
            plan = _first_format(settings, facts, sites, measured, held, stages, why)
        except (OutOfMemoryError, SettingError):
            continue
        if plan.max_context >= useful:
            return plan
        if best is None or plan.max_context > best.max_context:
            best = plan
    return best


def _nowhere(refused: OutOfMemoryError | None, sites: Sequence[Site]) -> OutOfMemoryError:
    names = ", ".join(site.name for site in sites)
    if refused is None:
        return OutOfMemoryError(f"The model does not fit {names}.", "", "Use a smaller model.")
    why = f"{refused.why} Nor do stages over {names} hold the model and a context."
    return OutOfMemoryError(refused.what, why, refused.hint)


def _alone(settings: EngineSettings) -> EngineSettings:
    return changed(settings, pipeline_stages=None, stage_layers=())


def _resident(settings: EngineSettings) -> EngineSettings:
    """Auto has no layers in host memory where there are stages."""
    return changed(settings, host_weights=0) if settings.host_weights is None else settings


def _oldest(settings: EngineSettings, sites: Sequence[Site]) -> Target:
    """The device whose instructions decide about formats: a processor where one computes, else the oldest GPU."""
    able = [site.machine for site in sites if capacity(site, settings)] or [sites[0].machine]
    targets = [choose_target(settings.device, machine) for machine in able]
    return min(targets, key=lambda target: target.capability or (0, 0))


def _count_reason(settings: EngineSettings, chosen: StagedDraft, sites: Sequence[Site]) -> str:
    stages = len(chosen.drafts)
    used = list(dict.fromkeys(seat.machine for seat in chosen.seats))
    where = f"{len(used)} machines" if len(used) > 1 else sites[used[0]].name
    asked = "as --layers asks" if settings.stage_layers else "as --pp asks" if settings.pipeline_stages else ""
    if stages == 1:
        return f"{where} has the whole model."
    return f"{stages} stages on {where} compute{', ' + asked if asked else ''}."


def _left_out(settings: EngineSettings, chosen: StagedDraft, sites: Sequence[Site]) -> str:
    used = {seat.machine for seat in chosen.seats}
    spare = [site.name for number, site in enumerate(sites) if number not in used and site.id]
    unable = [site.name for number, site in enumerate(sites) if number not in used and not site.id]
    if unable:
        spare = [*unable, *spare]
    if not spare:
        return ""
    names = spare[0] if len(spare) == 1 else f"{', '.join(spare[:-1])} and {spare[-1]}"
    verb = "has" if len(spare) == 1 else "have"
    return f"{names} {verb} no stage: with {len(chosen.drafts)} stages, others are faster or have more room."
