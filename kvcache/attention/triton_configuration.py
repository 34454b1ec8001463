"""Configuration: block sizes of the Triton kernels for a shape and an architecture, from assets/kernels. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

SIZES = (64, 96, 128, 256)
LATENT = "latent"


@dataclass(frozen=True, slots=True)
class Configuration:
    """rows: of queries in a tile (token x head of a group); positions: of the context in a block; warps and pipeline
    stages of a program; programs: how many of them, times the processors, a launch should have (splits make them)."""

    rows: int
    positions: int
    warps: int
    stages: int
    programs: int


def configuration_of(architecture: str, step: str, size: int, latent: bool, element_bytes: int) -> Configuration:
    """architecture: `sm_90`; those without a table of their own share `default`. step: `decode` or `prefill`.

    size: the larger of a key's and a value's; element_bytes: of the larger stored type. Raises ValueError for sizes
    past the largest in the table.
    """
    table = _tables()
    sizes = table.get(architecture, table["default"])[step]
    if latent:
        chosen = sizes[LATENT]
    else:
        fitting = next((known for known in SIZES if size <= known), None)
        if fitting is None:
            raise ValueError(f"no configuration for heads of {size} elements; the largest has {SIZES[-1]}")
        chosen = sizes[str(fitting)]
    return Configuration(**dict(zip(_FIELDS, chosen[str(element_bytes)], strict=True)))


_FIELDS = ("rows", "positions", "warps", "stages", "programs")


@cache
def _tables() -> dict[str, dict[str, dict[str, dict[str, list[int]]]]]:
    """By architecture, step, size and bytes of a stored element."""
    return json.loads((resources.files("assets") / "kernels" / "attention.json").read_text())["configurations"]
