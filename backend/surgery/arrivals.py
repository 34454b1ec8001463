"""Arrivals: weights that get memory when their first tensor is read, and are stored when their last has been.

So a model that is quantized never lies on its device unquantized: beside what is stored, there are only the layers that
have come in part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.surgery.linears import ServedLinear
from backend.surgery.store import expert_stacks, is_stored, store_experts, store_linear, stored_tensors
from quant.weight_format import WeightFormat


@dataclass(slots=True)
class _Holder:
    """A module whose weights wait, and how many of its places are still empty."""

    module: nn.Module
    missing: int = 0
    present: bool = False


class Arrivals:
    """Decides at the start which modules wait; told of each of their places as they are filled."""

    def __init__(
        self,
        model: PreTrainedModel,
        weight_format: WeightFormat,
        device: torch.device,
        hosted: Collection[nn.Module] = (),
    ) -> None:
        """model: with its parameters on meta. hosted: modules whose weights, stored on `device`, go to host memory."""
        self._format, self._device, self._hosted = weight_format, device, hosted
        output = model.get_output_embeddings()
        users = Counter(id(one) for module in model.modules() for one in module._parameters.values() if one is not None)
        self._holders: dict[nn.Module, _Holder] = {}
        for module in model.modules():
            waits = isinstance(module, ServedLinear) and is_stored(module, output)
            # A weight that others use too must be there for them.
            alone = all(users[id(one)] == 1 for one in module._parameters.values() if one is not None)
            if alone and (waits or expert_stacks(module)):
                self._holders[module] = _Holder(module)

    def waits(self, module: nn.Module) -> bool:
        """Whether the module's parameters get their memory here."""
        return module in self._holders

    def expect(self, module: nn.Module) -> None:
        """One more of the module's places is to be filled."""
        if module in self._holders:
            self._holders[module].missing += 1

    def open(self, module: nn.Module) -> None:
        """Called before a place of the module is filled: its parameters have memory afterwards."""
        holder = self._holders.get(module)
        if holder is None or holder.present:
            return
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_empty(parameter, self._device), requires_grad=False)
        holder.present = True

    def filled(self, module: nn.Module) -> None:
        """Called after a place of the module was filled: stores it if that was the last."""
        holder = self._holders.get(module)
        if holder is None:
            return
        holder.missing -= 1
        if holder.missing:
            return
        if isinstance(module, ServedLinear):
            store_linear(module, self._format)
        else:
            store_experts(module, self._format)
        if module in self._hosted:
            for tensor in stored_tensors(module):
                tensor.data = tensor.data.cpu()


def _empty(parameter: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(parameter, device=device)
