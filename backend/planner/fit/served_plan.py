"""served_plan: the Plan that `serve` takes with a user's own options, judged and predicted as `fit` does. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.hardware.cluster import Cluster
from backend.hardware.machine import Machine
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.candidate import Candidate, Question
from backend.planner.fit.fit_plans import fit_plan
from backend.planner.fit.judged import Judged
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.replica import served, staged
from backend.planner.fit.report import FitPlan
from backend.planner.fit.resolve import resolve
from backend.planner.fit.shape import Shape
from backend.planner.fit.speeds import speed_of
from backend.planner.fit.verdict import verdict
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.planner.ranks import USEFUL_CONTEXT
from backend.planner.staged.placing import draft_stages
from backend.planner.staged.site import Site


def served_plan(
    facts: ModelFacts, machine: Machine, settings: EngineSettings, plan: Plan, sites: tuple[Site, ...] = ()
) -> FitPlan:
    """The plan as a FitPlan, judged for one user with the context that people usually want, as far as the plan goes.

    Arguments:
        plan: what `decide` made of the settings for this model and machine; its formats hold.
        sites: of a plan with stages, the machines that it was placed over.
    """
    model = KnownModel(plan.model, facts, exact=True)
    machines = tuple(site.machine for site in sites) if plan.stages else (machine,)
    cluster = Cluster(machines, "this computer", local=True)
    asked = Question(model, cluster, resolve(model, FitAsk(context=min(USEFUL_CONTEXT, plan.max_context))))
    settled = replace(settings, weights=plan.weight_format, kv_format=plan.kv_format)
    if plan.stages:
        placed = draft_stages(settled, facts, sites, plan.pipeline_stages, plan.weight_format)
        replica = staged(placed)
    else:
        replica = served(settled, model, machine, plan.weight_format)
    shape = Shape((replica.seats,), own=not plan.stages, free=bool(plan.stages))
    made = Candidate(shape, plan.weight_format, plan.kv_format, plan.hosted is not None, settled, (replica,))
    return fit_plan(asked, Judged(made, verdict(asked, made), speed_of(asked, made)), None)
