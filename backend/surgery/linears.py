"""ServedLinear, the one class behind every replaced linear layer, and how several of them become one product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from quant.weight_format import Linear

LinearKernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, stop) of a ServedLinear, and the layer they were before surgery, as checkpoints name it."""

    name: str
    start: int
    stop: int


class ServedLinear(nn.Module):
    """A linear layer, or several over one input stacked by rows, computed by one exchangeable kernel.

    Attributes:
        weight: [out, in]; bias: [out] or None.
        parts: the layers it stands for; checkpoints are read into their rows.
        kernel: maps [..., in] to [..., out]; the plain product until `adopt` puts a stored one in its place.
        finish: what is done to the product before it is handed on; where a layer is divided over ranks, they add up
            or gather what each computed.
        stored: the weight in a format of its own, once it was adopted.
    """

    weight: nn.Parameter

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, parts: tuple[Part, ...]) -> None:
        super().__init__()
        self.weight, self.bias, self.parts = weight, bias, parts
        self.kernel: LinearKernel = self.multiply
        self.finish: LinearKernel | None = None
        self.stored: Linear | None = None
        self.out_features, self.in_features = weight.shape

    def adopt(self, stored: Linear) -> None:
        """Computes with `stored` from now on, which holds the weight and bias itself."""
        self.kernel = self.stored = stored
        # Nothing of the weight is left but its type, which some families ask for.
        self._parameters.update(weight=nn.Parameter(self.weight.new_empty(0), requires_grad=False), bias=None)

    def multiply(self, x: Tensor) -> Tensor:
        """The plain product, over `weight` as it is now."""
        return functional.linear(x, self.weight, self.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        product = self.kernel(x)
        return product if self.finish is None else self.finish(product)

    def extra_repr(self) -> str:
        return ", ".join(f"{part.name}: {part.stop - part.start}" for part in self.parts)


class SharedProduct:
    """Computes one ServedLinear for several layers that are called apart with the same input, in any order."""

    def __init__(self, linear: ServedLinear) -> None:
        self._linear = linear
        self._input: Tensor | None = None
        self._product: Tensor | None = None
        self._taken = 0

    def take(self, x: Tensor, part: Part) -> Tensor:
        """The part's columns of the product with `x`; computed when `x` is new, dropped when every part was taken."""
        product = self._product
        if product is None or self._input is not x:
            product = self._linear(x)
            self._input, self._product, self._taken = x, product, 0
        rows = product[..., part.start : part.stop]
        self._taken += 1
        if self._taken == len(self._linear.parts):
            self._input = self._product = None
        return rows


class PartLinear(nn.Module):
    """Stands where one of the merged layers stood, and answers with its share of the product."""

    def __init__(self, product: SharedProduct, part: Part) -> None:
        super().__init__()
        self._product, self._part = product, part

    def forward(self, x: Tensor) -> Tensor:
        return self._product.take(x, self._part)


def serve(linear: nn.Linear, name: str) -> ServedLinear:
    """The ServedLinear for one layer; it keeps the layer's very parameters, so tied ones stay tied."""
    weight: Any = linear.weight
    return ServedLinear(weight, linear.bias, (Part(name, 0, linear.out_features),))


def merge(linears: list[nn.Linear], names: list[str]) -> ServedLinear:
    """One ServedLinear for several layers over one input, stacked in the given order; parameters on meta, empty."""
    parts, start = [], 0
    for linear, name in zip(linears, names, strict=True):
        parts.append(Part(name, start, start + linear.out_features))
        start += linear.out_features
    first = linears[0]
    weight = nn.Parameter(first.weight.new_empty(start, first.in_features), requires_grad=False)
    bias = None if first.bias is None else nn.Parameter(first.bias.new_empty(start), requires_grad=False)
    return ServedLinear(weight, bias, tuple(parts))


def mergeable(linears: list[nn.Linear]) -> bool:
    """Whether the layers are plain, over inputs of one size, and all with or all without bias."""
    alike = {(linear.in_features, linear.bias is None, linear.weight.dtype) for linear in linears}
    return len(linears) > 1 and len(alike) == 1 and all(type(linear) is nn.Linear for linear in linears)


def served_linears(model: nn.Module) -> Iterator[tuple[str, ServedLinear]]:
    """Every ServedLinear of a model with its path."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ServedLinear))
