"""The model's own weights, unquantized: packed for the processor's kernel where it serves them, else torch's linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from quant.cpu.linear import PackedLinear
    from quant.cpu.team import Team


class TorchLinear:
    """A plain weight under torch's own product; the reference that the packed linear is compared with."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, exact: bool = False) -> None:
        self._weight, self._bias, self._exact = weight, bias, exact

    @property
    def bytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self._weight,) if self._bias is None else (self._weight, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self._weight, self._bias)
        return y.float() if self._exact else y

    def rows(self, index: Tensor) -> Tensor:
        return functional.embedding(index, self._weight)


class ModelFormat:
    """Format "model": nothing is rounded."""

    name = "model"

    def linear(
        self, weight: Tensor, bias: Tensor | None, team: Team | None, *, exact: bool = False
    ) -> TorchLinear | PackedLinear:
        """The packed linear where a team computes (bfloat16, float32), else torch's."""
        if team is not None and weight.device.type == "cpu":
            # The kernels compile at first import; a GPU never needs them.
            from quant.cpu.linear import PackedLinear

            if PackedLinear.supports(weight):
                return PackedLinear(weight, bias, team, exact=exact)
        return TorchLinear(weight, bias, exact=exact)
