"""Which of a model's weights a WeightFormat stores, and storing them: linear layers, and experts one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.surgery.expert_shares import norms_pairs
from backend.surgery.linears import ServedLinear, served_linears
from quant.weight_format import Linear, WeightFormat
from quant.weight_sizes import LinearShape

# What chooses experts or weighs them: small, and a wrong choice costs more than any rounding of what is chosen.
_CHOOSING = frozenset({"gate", "router", "wg", "classifier", "shared_expert_gate"})
_NARROW = 16
_STACKS = ("gate_up_proj", "up_proj", "down_proj")


class StoredExperts:
    """One of an experts module's weights, stored expert by expert."""

    def __init__(self, linears: list[Linear]) -> None:
        self._linears = linears

    @property
    def count(self) -> int:
        return len(self._linears)

    @property
    def bytes(self) -> int:
        return sum(linear.bytes for linear in self._linears)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for linear in self._linears for tensor in linear.tensors)

    def multiply(self, expert: int, x: Tensor) -> Tensor:
        """x: [n, depth], the expert's tokens -> [n, columns], bias included."""
        return self._linears[expert](x)


def keeps_type(path: str, columns: int) -> bool:
    """Whether a linear layer stays in the model's dtype whatever the format, beside the output layer."""
    return columns < _NARROW or not _CHOOSING.isdisjoint(path.split(".")[-2:])


def is_stored(linear: ServedLinear, output: nn.Module | None) -> bool:
    """Whether a format other than the model's own stores the layer."""
    return linear is not output and not any(keeps_type(part.name, linear.out_features) for part in linear.parts)


def expert_stacks(module: nn.Module) -> tuple[str, ...]:
    """Names of the weights [experts, …] of an experts module that are stored one by one; empty for any other module."""
    known = hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "has_bias")
    if not known or norms_pairs(module):
        return ()
    found = {name: module._parameters.get(name) for name in _STACKS}
    return tuple(name for name, stack in found.items() if stack is not None and stack.dim() == 3)


def store_linear(linear: ServedLinear, weight_format: WeightFormat) -> None:
    """The layer's weight, complete, in `weight_format`; its own is dropped."""
    linear.adopt(weight_format.linear(linear.weight, linear.bias, None))


def store_experts(module: Any, weight_format: WeightFormat) -> None:
    """Every expert's weights, complete, in `weight_format`; the stacks are dropped, one after the other."""
    stored: dict[str, StoredExperts] = {}
    for name in expert_stacks(module):
        stack: Tensor = module._parameters.pop(name)
        biases: Tensor | None = module._parameters.pop(f"{name}_bias", None) if module.has_bias else None
        if name == "down_proj" and not getattr(getattr(module, "share", None), "biased", True):
            biases = None  # another rank adds it
        linears = []
        for expert in range(stack.shape[0]):
            weight = stack[expert].T.contiguous() if module.is_transposed else stack[expert]
            bias = None if biases is None else biases[expert].clone()
            linears.append(weight_format.linear(weight, bias, None))
        stored[name] = StoredExperts(linears)
    module.stored_experts = stored


@torch.no_grad()
def store_model(model: nn.Module, weight_format: WeightFormat) -> None:
    """Stores what of the model has not been stored yet, and only what a format other than the model's own stores."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for _, linear in list(served_linears(model)):
        if linear.stored is None and is_stored(linear, output):
            store_linear(linear, weight_format)
    for module in list(model.modules()):
        if expert_stacks(module):
            store_experts(module, weight_format)


def stored_tensors(module: nn.Module) -> Iterator[Tensor]:
    """What the module's own weights hold that are stored in a format, if any is."""
    if isinstance(module, ServedLinear) and module.stored is not None:
        yield from module.stored.tensors
    experts: dict[str, StoredExperts] = getattr(module, "stored_experts", {})
    for stack in experts.values():
        yield from stack.tensors


def held_bytes(model: nn.Module) -> int:
    """What parameters and stored weights occupy."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, ServedLinear) and module.stored is not None:
            total += module.stored.bytes
        experts: dict[str, StoredExperts] = getattr(module, "stored_experts", {})
        total += sum(stack.bytes for stack in experts.values())
    return total


def linear_shapes(model: PreTrainedModel, without: frozenset[str]) -> Iterator[tuple[LinearShape, int]]:
    """The shapes of a model's linears and experts before surgery, and how many it has of each.

    without: paths of layers whose weight surgery takes for something else.
    """
    counts: Counter[LinearShape] = Counter()
    output = model.get_output_embeddings()
    for path, module in model.named_modules():
        if type(module) is nn.Linear and path not in without:
            kept = module is output or keeps_type(path, module.out_features)
            counts[LinearShape(module.out_features, module.in_features, module.bias is not None, kept)] += 1
        for name in expert_stacks(module):
            experts: Any = module
            count, columns, depth = experts._parameters[name].shape
            if experts.is_transposed:
                columns, depth = depth, columns
            counts[LinearShape(columns, depth, experts.has_bias, expert=True)] += count
    yield from counts.items()
