"""fit: what of a model fits on a cluster, in every way worth planning, ranked. Pure: no torch, no files, no clock."""

from __future__ import annotations

from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.cluster import Cluster
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.bench import Bench
from backend.planner.fit.candidate import Candidate, Question, plain_settings
from backend.planner.fit.costs import plan_cost
from backend.planner.fit.fit_plans import fit_plan
from backend.planner.fit.judged import KINDS, Judged
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.notes import notes
from backend.planner.fit.rank import best, ranked
from backend.planner.fit.replica import served
from backend.planner.fit.report import FitReport
from backend.planner.fit.resolve import resolve
from backend.planner.fit.shape import Seat, Shape
from backend.planner.fit.shapes import Division, shapes
from backend.planner.fit.speeds import speed_of
from backend.planner.fit.verdict import verdict
from backend.planner.fit.ways_out import ways_out


def fit(model: KnownModel, cluster: Cluster, ask: FitAsk) -> FitReport:
    """Every plan worth looking at, best first by the goal, with what to change where none fits.

    Raises SettingError for a context that the model was not made for, and for what no engine has.
    """
    asked = Question(model, cluster, resolve(model, ask))
    bench = Bench(asked)
    found = _judged(bench)
    own = _serve(asked)
    if own is not None:
        found = [own, *(one for one in found if not _same(one, own))]
    plans = {id(one): fit_plan(asked, one, plan_cost(asked, one), plain=one is own) for one in found}
    serve = plans[id(own)] if own is not None else None
    order = ranked(list(plans.values()), asked.ask.goal, serve)
    taken = best(order)
    return FitReport(
        model=model.name,
        source=model.source,
        hardware=cluster.name,
        ask=asked.ask,
        plans=tuple(order),
        best=taken,
        serve=next((number for number, plan in enumerate(order) if plan is serve), None),
        ways_out=ways_out(bench, own or _nearest(found)),
        notes=notes(asked),
    )


def _judged(bench: Bench) -> list[Judged]:
    """Every shape in the formats worth trying; where none fits, layers in host memory, and a processor beside GPUs."""
    asked = bench.asked
    every = shapes(asked.cluster, Division(asked.model.facts))
    found = [one for shape in every for one in bench.of_shape(shape)]
    own = [shape for shape in every if shape.own and shape.experts == "auto"]
    if any(one.fits and one.candidate.shape.own for one in found) or not own:
        return found
    found += bench.hosted(own[-1])
    if asked.cluster.machines[0].gpus and not any(one.fits for one in found):
        found += bench.of_shape(Shape(((Seat(0),),), own=True))
    return found


def _serve(asked: Question) -> Judged | None:
    """What `serve` takes by itself on the first machine; None where it refuses."""
    model, machine = asked.model, asked.cluster.machines[0]
    if model.unserved or asked.ask.engine != "shardwise":
        return None
    settings = plain_settings(asked, bool(machine.gpus), users=1)
    try:
        replica = served(settings, model, machine, "model")
    except (SettingError, OutOfMemoryError):
        return None
    if replica.plan is None:
        return None
    made = Candidate(Shape((replica.seats,), own=True), "model", "model", False, settings, (replica,))
    return Judged(made, verdict(asked, made), speed_of(asked, made))


def _same(one: Judged, own: Judged) -> bool:
    """Whether both come to the same Plan."""
    plan, other = one.candidate.replicas[0].plan, own.candidate.replicas[0].plan
    if plan is None or other is None:
        return False
    return (plan.ranks, plan.max_context, plan.max_sequences, plan.experts, plan.kv_format, plan.weight_format) == (
        other.ranks, other.max_context, other.max_sequences, other.experts, other.kv_format, other.weight_format,
    )  # fmt: skip


def _nearest(found: list[Judged]) -> Judged | None:
    """In the model's own formats, what comes nearest to fitting on devices that `serve` could take."""
    own = [one for one in found if one.candidate.weights == "model" and not one.candidate.hosted]
    plain = [one for one in own if one.candidate.shape.own] or own or found
    return min(plain, key=_distance, default=None)


def _distance(one: Judged) -> tuple[int, int]:
    room = min(draft.left for replica in one.candidate.replicas for draft in replica.drafts)
    return KINDS.index(one.verdict.kind), -room
