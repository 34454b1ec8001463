"""Owners: which unit (a head, a column) each element of a flow's numbers ends in, read from gradients.

Backward passes tell it: one with random weights over what is looked at, and one for each digit of the units' numbers,
with the same weights times (digit + 1). Where an element flows into one unit only, that gradient is (digit + 1) times
the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = -1
# Digits so small that float32 tells them apart.
_BASE = 256
_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Owners:
    """Of one tensor's last dimension: units [size] int64, the one unit that an element flows into, or NOTHING.

    None where some element flows into several.
    """

    units: Tensor | None

    @property
    def mixed(self) -> bool:
        return self.units is None


def owners(sink: Tensor, units: Tensor, sources: Sequence[Tensor], dim: int = -1) -> list[Owners | None]:
    """Where each source's elements end in `sink`; None for a source that does not flow into it at all.

    sink: any shape; units: int64 of a shape that broadcasts to it, from 0 on. sources: leaves of its graph, looked at
    along their dimension `dim`.
    """
    if not sink.requires_grad or not sources:
        return [None] * len(sources)
    weights = torch.rand(sink.shape, generator=torch.Generator().manual_seed(23), dtype=torch.float32) + 0.5
    weights = weights.to(sink.dtype)
    plain = _gradients(sink, sources, weights, dim)
    found: list[Owners | None] = [None if one is None or not bool((one != 0).any()) else Owners(None) for one in plain]
    totals: list[Tensor | None] = [
        None if owner is None or one is None else torch.zeros(one.shape[-1], dtype=torch.long)
        for owner, one in zip(found, plain, strict=True)
    ]
    place, most = 1, int(units.max())
    while place <= max(1, most):
        digits = units // place % _BASE
        counted = _gradients(sink, sources, weights * (digits + 1).to(weights.dtype), dim)
        for index, (first, second) in enumerate(zip(plain, counted, strict=True)):
            total = totals[index]
            if total is not None and first is not None and second is not None:
                read = _digits(first, second)
                totals[index] = None if read is None else total + read * place
        place *= _BASE
    return [
        owner if owner is None or total is None or one is None else Owners(_marked(one, total))
        for owner, total, one in zip(found, totals, plain, strict=True)
    ]


def _gradients(sink: Tensor, sources: Sequence[Tensor], weights: Tensor, dim: int) -> list[Tensor | None]:
    given = torch.autograd.grad(sink, sources, grad_outputs=weights, retain_graph=True, allow_unused=True)
    return [None if one is None else one.movedim(dim, -1) for one in given]


def _rows(gradient: Tensor) -> Tensor:
    return gradient.reshape(-1, gradient.shape[-1] if gradient.dim() else 1)


def _digits(plain: Tensor, counted: Tensor) -> Tensor | None:
    """Each element's digit, 0 for those without a gradient; None where one has several."""
    plain, counted = _rows(plain), _rows(counted)  # [tokens, size]
    row = plain.abs().argmax(0, keepdim=True)
    largest = plain.gather(0, row)[0]
    flows = largest != 0
    ones = torch.ones((), dtype=plain.dtype)
    ratio = torch.where(flows, counted.gather(0, row)[0] / torch.where(flows, largest, ones), ones)
    nearest = ratio.round()
    # The token in which an element counts most says where it goes; the others must not disagree.
    weighty = plain.abs() > 0.01 * largest.abs()
    apart = (counted - nearest * plain).abs() > _TOLERANCE * plain.abs()
    if bool(((ratio - nearest).abs() > _TOLERANCE).any()) or bool((apart & weighty).any()) or bool((nearest < 1).any()):
        return None
    return nearest.long() - 1


def _marked(plain: Tensor, units: Tensor) -> Tensor:
    return torch.where((_rows(plain) != 0).any(0), units, torch.tensor(NOTHING))
