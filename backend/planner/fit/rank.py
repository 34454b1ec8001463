"""rank: the order of plans by a goal, and which of them is best. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from backend.planner.fit.ask import Goal
from backend.planner.fit.report import Cost, FitPlan

_TIERS = {"roomy": 0, "fits": 0, "fragile": 1, "too large": 2}
# How much better by the goal a plan must be that stores numbers in fewer bits than the model has, to rank before one
# that does not: accuracy counts, and nobody measured it here. Weights in 8 bits halve what a step reads, so a factor of
# two says: not for speed alone; for half the GPUs at the same speed, yes. 8 bits of K and V lose the least.
_PRICE_WEIGHTS = {"model": 1.0, "int8": 2.0, "fp8": 2.0, "nf4": 3.0}
_PRICE_KV = 1.2
# Layers in host memory are copied in each step; their time says so by itself.
# Figures nearer than this are alike: predictions are no better.
_ALIKE = 1.05


def score(plan: FitPlan, goal: Goal) -> float:
    """What a plan is ranked by, less being better, before what its formats cost in accuracy.

    Latency: seconds from token to token for one user, with the first token's spread over an answer. Throughput: seconds
    for a token of all users together. Cost: dollars for a million tokens; GPUs times seconds where no price is known.
    """
    speed = plan.speed
    if speed is None:
        return float("inf")
    if goal == "latency":
        return speed.alone.likely + speed.first_token.likely / 256
    seconds = 1 / max(speed.throughput.likely, 1e-9)
    if goal == "throughput":
        return seconds
    return _dollars(plan.cost) if plan.cost else seconds * len(plan.devices)


def ranked(plans: Sequence[FitPlan], goal: Goal, serve: FitPlan | None) -> list[FitPlan]:
    """Best first: what fits, what is fragile, what is too large; by the goal within each.

    Figures within 5% are alike; of those, runnable plans come first, then what `serve` takes by itself, then fewer
    changes of the model's formats and fewer GPUs. What is too large is in order of what it lacks.
    """
    left = sorted(plans, key=lambda plan: (_TIERS[plan.verdict.kind], _priced(plan, goal), _lack(plan)))
    found: list[FitPlan] = []
    while left:
        first = left[0]
        alike = [
            plan
            for plan in left
            if _TIERS[plan.verdict.kind] == _TIERS[first.verdict.kind]
            and first.speed is not None
            and _priced(plan, goal) <= _ALIKE * _priced(first, goal)
        ]
        chosen = min(alike or [first], key=lambda plan: _smallest_change(plan, plan is serve))
        found.append(chosen)
        left.remove(chosen)
    return found


def best(plans: Sequence[FitPlan]) -> int | None:
    """Position of the best that fits and that this version runs; else of the best that fits; None where none does."""
    fitting = [number for number, plan in enumerate(plans) if _TIERS[plan.verdict.kind] == 0]
    runnable = [number for number in fitting if plans[number].runnable]
    return next(iter([*runnable, *fitting]), None)


def price(plan: FitPlan) -> float:
    """What the plan's formats count for: 1 for the model's own."""
    kv = 1.0 if plan.kv_format in ("model", "auto") else _PRICE_KV
    return _PRICE_WEIGHTS.get(plan.weights, 1.0) * kv


def _priced(plan: FitPlan, goal: Goal) -> float:
    return score(plan, goal) * price(plan)


def _smallest_change(plan: FitPlan, serve: bool) -> tuple[object, ...]:
    return not plan.runnable, not serve, price(plan), plan.hosted, len(plan.devices), plan.stages, plan.replicas


def _lack(plan: FitPlan) -> tuple[bool, int, float]:
    """GPUs before a processor; then bytes that the shortest device is short of; then what formats cost."""
    processor = all(device.gpu is None for device in plan.devices)
    return processor, -min((device.unused for device in plan.devices), default=0), price(plan)


def _dollars(cost: Cost) -> float:
    return cost.per_million.likely
