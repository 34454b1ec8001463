"""AllReduceFacts: what adding up was measured to take on some links; the table lies in `assets/hardware`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import msgspec
from msgspec import Struct


class AllReduceFacts(Struct, frozen=True):
    """One link, library and number of ranks.

    Attributes:
        link: of the table of links.
        kind: "nvlink" or "pcie".
        bandwidth: GB/s in one direction, as built.
        library: "nccl", or "own" for an engine's kernel (vLLM's, in CUDA graphs).
        bytes, us: of messages, ascending, and the microseconds that each took.
        source: with the library's version.
    """

    link: str
    kind: Literal["nvlink", "pcie"]
    bandwidth: float
    library: Literal["nccl", "own"]
    ranks: int
    bytes: tuple[int, ...]
    us: tuple[float, ...]
    source: str


@cache
def all_reduce_table() -> tuple[AllReduceFacts, ...]:
    """Every row, in the table's order."""
    text = (resources.files("assets") / "hardware" / "all_reduce.jsonl").read_bytes()
    return tuple(msgspec.json.decode(line, type=AllReduceFacts) for line in text.splitlines() if line)
