"""Packing: the seam between a checkpoint's packed tensors and the weights that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Packing(Protocol):
    """One method, with what config.json says of it. Called for one weight at a time, while it is read."""

    @property
    def weight(self) -> str:
        """How the plain weight's name ends."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """How the names of the tensors end that make one weight up, after the same beginning; the first has to be
        there."""
        ...

    @property
    def unused(self) -> tuple[str, ...]:
        """Endings of tensors that say nothing of weights: scales of activations, for one."""
        ...

    def unpack(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 or as precise, of its parts by their endings.

        Raises ValueError, in words that follow the weight's name, where the parts do not fit each other.
        """
        ...
