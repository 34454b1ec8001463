"""Block sizes of the expert kernels for an architecture and a load, from assets/kernels. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Tile:
    """columns and depth of a weight's tile; warps and pipeline stages of a program."""

    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class ExpertConfiguration:
    """rows: of one expert in a block, the same for both products; up, down: the tiles of the first and the second.

    Of a gate's product, `up.columns` counts results: a program reads two columns for each.
    """

    rows: int
    up: Tile
    down: Tile


def expert_configuration(architecture: str, element_bytes: int, load: float) -> ExpertConfiguration:
    """architecture: `sm_90`; those without a table of their own share `default`. load: pairs an expert, on average."""
    table = _tables()
    lines = table.get(architecture, table["default"])[str(element_bytes)]
    line = next((line for line in lines if load <= line["load"]), lines[-1])
    return ExpertConfiguration(line["rows"], Tile(*line["up"]), Tile(*line["down"]))


def loads(architecture: str, element_bytes: int) -> list[float]:
    """One load for each configuration of an architecture: for compiling and measuring all of them."""
    table = _tables()
    return [line["load"] for line in table.get(architecture, table["default"])[str(element_bytes)]]


@cache
def _tables() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By architecture and bytes of an element: configurations by rising load."""
    return json.loads((resources.files("assets") / "kernels" / "experts.json").read_text())["configurations"]
