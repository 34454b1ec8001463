"""EnginePlan: an engine's Plan beside its ranks' memory, as clients read them from `/plan`; checked and cleaned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from app.text_safety import clean_line
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan

# Reasons are sentences; nothing that a Plan says is longer.
_MOST_CHARACTERS = 4096


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
        body = msgspec.convert(_cleaned(msgspec.json.decode(content)), type=_Body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return tuple(EnginePlan(each.model, each.plan, each.measured) for each in body.engines)


def _cleaned(value: Any) -> Any:
    """The same without control sequences, which a server might send to whoever shows it."""
    match value:
        case str():
            return clean_line(value, _MOST_CHARACTERS)
        case list():
            return [_cleaned(one) for one in value]
        case dict():
            return {clean_line(str(name)): _cleaned(one) for name, one in value.items()}
        case _:
            return value
