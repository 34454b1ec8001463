"""Judge: how ways out ask an engine's planner for plans, and what they start from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from backend.planner.fit.candidate import Question
from backend.planner.fit.report import FitPlan
from backend.planner.fit.shape import Shape


class Judge(Protocol):
    """An engine's planner, as ways out ask it. Pure.

    Attributes:
        smaller: formats of weights below the model's own; `smaller_kv`: of K and V.
    """

    smaller: tuple[str, ...]
    smaller_kv: str

    def judge(
        self, shape: Shape, weights: str, kv_format: str, hosted: bool = False, asked: Question | None = None
    ) -> FitPlan | None:
        """The plan, for another question than the report's where one is given; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What would be taken without any change: its plan and shape."""

    plan: FitPlan
    shape: Shape
