"""WeightFormat: the seam between a linear's weight as loaded and whoever stores and multiplies it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from quant.weights.fp8 import Fp8Format
from quant.weights.int8 import Int8Format
from quant.weights.model import ModelFormat
from quant.weights.nf4 import Nf4Format

if TYPE_CHECKING:
    from quant.cpu.team import Team


class Linear(Protocol):
    """One linear layer's stored weight. Called a step at a time, from one thread."""

    @property
    def bytes(self) -> int:
        """What it occupies on its device."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those of `bytes`. Who keeps them elsewhere between steps exchanges their memory in place (`tensor.data`), and
        has what they hold back on the device before a call. Empty where they have to stay."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., depth] -> [..., columns], in x's dtype, or float32 where that was asked for."""
        ...

    def rows(self, index: Tensor) -> Tensor:
        """The weight's rows at index [T]: [T, depth]; an embedding that is tied to this linear looks up here."""
        ...


class WeightFormat(Protocol):
    """Called once per linear while a model loads; must not keep the tensors it is given, if it copies them.

    It is given a rank's own part of a layer, of any shape. `weight_sizes` has the formula of what it then holds.
    """

    name: str

    def linear(self, weight: Tensor, bias: Tensor | None, team: Team | None, *, exact: bool = False) -> Linear:
        """weight: [columns, depth]; bias: [columns]; team: the threads that compute, on a processor; exact:
        results are float32 (the output layer's: what follows is the sampler's). Raises ImportError where a library
        that it needs is missing."""
        ...


WEIGHT_FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {one.name: one for one in (ModelFormat(), Int8Format(), Nf4Format(), Fp8Format())}
)
