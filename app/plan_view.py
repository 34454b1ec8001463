"""EnginePlan: an engine's Plan beside its ranks' memory, as clients read them from `/plan`; checked and cleaned."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from app.text_safety import cleaned
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine's. `measured` has an entry a rank; none where the engine has just been lost."""

    model: str
    plan: Plan
    measured: tuple[MeasuredRank, ...]


class _Engine(msgspec.Struct):
    model: str
    plan: Plan
    measured: tuple[MeasuredRank, ...]


class _Body(msgspec.Struct):
    engines: list[_Engine]


def read_plans(content: bytes) -> tuple[EnginePlan, ...]:
    """The engines of `/plan`, the main one first. Raises ValueError for anything else."""
    try:
        body = msgspec.convert(cleaned(msgspec.json.decode(content)), type=_Body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return tuple(EnginePlan(each.model, each.plan, each.measured) for each in body.engines)
