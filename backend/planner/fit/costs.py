"""plan_cost: dollars for a million tokens of a candidate; prices and the formula are `cost`'s. Pure."""

from __future__ import annotations

from backend.planner.cost import cost_of
from backend.planner.fit.candidate import Question
from backend.planner.fit.judged import Judged
from backend.planner.fit.report import Cost


def plan_cost(asked: Question, one: Judged) -> Cost | None:
    """None where it does not start, where no GPU computes, and where nobody knows a price."""
    if one.speed is None:
        return None
    machines = asked.cluster.machines
    seats = [seat for replica in one.candidate.shape.seats for seat in replica]
    names = [machines[seat.machine].gpus[number].name for seat in seats for number in seat.gpus]
    return cost_of(one.speed.throughput, names, asked.ask.price)
