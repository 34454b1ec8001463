"""Rotation: the ways in which families rotate heads by position, each with the tables that its rotary modules make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rotation:
    """One way to rotate.

    Attributes:
        tables: from angles [1, T, D / 2] to what a model hands its layers as `position_embeddings`.
        rotate: turns heads [T, N, D] by such tables; query and key of one rotation have one order of elements, which
            need not be the family's own, because only their products count.
    """

    tables: Callable[[Tensor], Any]
    rotate: Callable[[Tensor, Any], Tensor]


def _cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def _halves(heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (table[0].unsqueeze(1) for table in tables)  # [T, 1, D]
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def _neighbours(heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    return _halves(torch.cat((heads[..., 0::2], heads[..., 1::2]), dim=-1), tables)


def _complex(angles: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angles), angles)


def _complex_neighbours(heads: Tensor, table: Tensor) -> Tensor:
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[0].unsqueeze(1)).flatten(-2).to(heads.dtype)


# By which elements are turned together: one of the first half with one of the second, or neighbours.
ROTATIONS: Mapping[str, Rotation] = MappingProxyType(
    {
        "halves": Rotation(_cos_sin, _halves),
        "neighbours": Rotation(_cos_sin, _neighbours),
        "complex neighbours": Rotation(_complex, _complex_neighbours),
    }
)
