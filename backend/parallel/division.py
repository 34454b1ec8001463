"""Division: which heads, columns, vocabulary rows and experts of a model are whose. Pure, no torch.

Heads go in whole groups, a KV head with its query heads, so that K and V of a group lie on one rank. Counts that do not
divide give some ranks one group more; the MLP's parts then make up for it, as the Plan says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

ExpertDivision = Literal["tensor", "expert"]
# Columns that kernels like to find together: a product's tile on a GPU, four vectors of a processor.
MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class Division:
    """How a model is divided, as one rank needs to know it.

    Attributes:
        rank: this one.
        attention, mlp: every rank's part of attention heads, and of MLPs and the vocabulary; relative, above 0.
        experts: "tensor" gives each rank a part of every expert, "expert" whole experts.
    """

    rank: int
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    experts: ExpertDivision = "tensor"

    @property
    def size(self) -> int:
        return len(self.attention)


@dataclass(frozen=True, slots=True)
class HeadShare:
    """One rank's query heads and the KV heads that they attend with."""

    heads: range
    kv_heads: range


def divide(total: int, weights: Sequence[float], multiple: int = 1) -> tuple[range, ...]:
    """Splits range(total) into a part for each weight, in order, as near to the weights as multiples allow.

    Every part but the last ends at a multiple, and none is empty while `total` has as many multiples as there are
    weights; smaller multiples are taken until it has. Raises ValueError where `total` is less than the parts.
    """
    parts = len(weights)
    if total < parts or min(weights) <= 0:
        raise ValueError(f"{total} cannot be divided into {parts} parts of weights {tuple(weights)}")
    while multiple > 1 and total // multiple < 2 * parts:
        multiple //= 2
    units = -(-total // multiple)
    counts = _apportion(units, weights)
    edges = [0, *accumulate(counts)]
    return tuple(range(start * multiple, min(total, end * multiple)) for start, end in pairwise(edges))


def divide_heads(heads: int, kv_heads: int, weights: Sequence[float]) -> tuple[HeadShare, ...]:
    """Each rank's heads: whole groups of a KV head, or, where ranks outnumber KV heads, parts of a group's query heads.

    In the second case a KV head lies on every rank that has query heads of it. Raises ValueError where ranks outnumber
    query heads.
    """
    group = heads // kv_heads
    if len(weights) <= kv_heads:
        parts = divide(kv_heads, weights)
        return tuple(HeadShare(range(part.start * group, part.stop * group), part) for part in parts)
    if len(weights) > heads:
        raise ValueError(f"{heads} query heads cannot be divided over {len(weights)} ranks")
    ranks = divide(len(weights), [1.0] * kv_heads)
    if any(len(members) > group for members in ranks):
        raise ValueError(f"{group} query heads of a KV head cannot be divided over {max(map(len, ranks))} ranks")
    shares = []
    for kv_head, members in enumerate(ranks):
        for part in divide(group, weights[members.start : members.stop]):
            first = kv_head * group
            shares.append(HeadShare(range(first + part.start, first + part.stop), range(kv_head, kv_head + 1)))
    return tuple(shares)


def _apportion(units: int, weights: Sequence[float]) -> list[int]:
    """Whole units for each weight, at least one, by largest remainders (Hamilton's method); earlier parts first."""
    total = sum(weights)
    ideal = [max(1.0, units * weight / total) for weight in weights]
    counts = [int(part) for part in ideal]
    order = sorted(range(len(weights)), key=lambda index: counts[index] - ideal[index])
    while sum(counts) < units:
        for index in order[: units - sum(counts)]:
            counts[index] += 1
    while sum(counts) > units:
        counts[counts.index(max(counts))] -= 1
    return counts
