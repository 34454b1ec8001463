"""ExpertShare: which experts, or which columns of every expert, one rank computes; how a module's parameters are cut
for it. Cutting and loading them is surgery's and the loader's, computing is `experts`'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import SettingError, UnsupportedModelError
from backend.parallel.division import MULTIPLE, Division, divide
from backend.parallel.group import Group


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """One rank's part in a mixture of experts, kept as the attribute `share` of the experts module.

    Attributes:
        first: number, among all, of the first expert that lies here.
        count: how many lie here, one after the other; `total` where each rank has a part of every expert.
        total: how many the layer has.
        biased: whether the second product's bias is added here; over ranks with parts of an expert, only one adds it.
        reduce: sums a tensor over all ranks in place; None for one rank, which has everything.
    """

    first: int
    count: int
    total: int
    biased: bool = True
    reduce: Callable[[Tensor], None] | None = None

    @property
    def whole(self) -> bool:
        """Whether every expert's matrices lie here whole or not at all; False for parts of each."""
        return self.reduce is None or self.count < self.total


@dataclass(frozen=True, slots=True)
class Slices:
    """How one rank's experts module is cut.

    Attributes:
        kept: for each parameter that is cut, by its name within the module: the dimension, and the 1-D int64 index of
            what is kept of it.
        share: what `run_experts` has to know.
    """

    kept: Mapping[str, tuple[int, Tensor]]
    share: ExpertShare


def are_experts(module: nn.Module) -> bool:
    """Whether transformers' experts interface, and so `run_experts`, computes this module."""
    marked = hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "has_bias")
    return marked and "down_proj" in module._parameters


def norms_pairs(experts: Any) -> bool:
    """Whether each expert's output is normed before the sum; before 5.23 transformers had no such experts."""
    return getattr(experts, "has_post_expert_norm", False)


def narrow_experts(experts: Any, division: Division, group: Group) -> Slices:
    """What `division.rank` keeps of a module for which `are_experts` holds; its parameters may lie on meta.

    Raises SettingError where ranks outnumber experts or their columns, UnsupportedModelError where the columns of the
    module's gate depend on more than their own.
    """
    total = experts.down_proj.shape[0]
    reduce = group.all_reduce if division.size > 1 else None
    if division.experts == "expert":
        mine = _part(total, division, 1, "experts")
        index = torch.arange(mine.start, mine.stop)
        names = [name for name, parameter in experts._parameters.items() if parameter is not None]
        return Slices(dict.fromkeys(names, (0, index)), ExpertShare(mine.start, len(mine), total, True, reduce))
    share = ExpertShare(0, total, total, division.rank == 0, reduce)
    return Slices(_columns_kept(experts, division), share)


def _part(size: int, division: Division, multiple: int, what: str) -> range:
    if size < division.size:
        raise SettingError(
            f"{size} {what} cannot be divided over {division.size} ranks.",
            "Each rank needs at least one.",
            "Use fewer ranks, or divide the experts in the other way (--experts tensor or expert).",
        )
    return divide(size, division.mlp, multiple)[division.rank]


def _columns_kept(experts: Any, division: Division) -> dict[str, tuple[int, Tensor]]:
    up, transposed = "gate_up_proj" if experts.has_gate else "up_proj", experts.is_transposed
    origin = gate_columns(experts)
    size = experts.down_proj.shape[1 if transposed else 2]
    mine = _part(size, division, MULTIPLE, "columns of an expert")
    product = ((origin >= mine.start) & (origin < mine.stop)).nonzero()[:, 0]
    inner = torch.arange(mine.start, mine.stop)
    kept = {up: (2 if transposed else 1, product), "down_proj": (1 if transposed else 2, inner)}
    if experts.has_bias:
        kept[f"{up}_bias"] = (1, product)
    _check(experts, origin, division)
    return kept


def gate_columns(experts: Any) -> Tensor:
    """For each column of the first product, the column of the gate's result that it goes into: int64 [columns].

    Found from the gate itself. Where each column goes into one result, its derivative under weights 1, 2, 3 … of the
    results is its result's weight times what it is under weights of 1.
    """
    weight = experts.gate_up_proj if experts.has_gate else experts.up_proj
    product = _probe(weight.shape[2 if experts.is_transposed else 1])
    with torch.inference_mode(False), torch.enable_grad():
        product = product.clone().requires_grad_()
        result = activate(experts, product)
        numbers = torch.arange(1.0, result.shape[1] + 1, dtype=result.dtype)[None]
        (plain,) = torch.autograd.grad(result, product, torch.ones_like(result), retain_graph=True)
        (numbered,) = torch.autograd.grad(result, product, numbers)
    origin = (numbered / plain)[0] - 1
    # A column that goes nowhere is NaN, one that goes into several is no whole number, or fails the check.
    if not torch.allclose(origin, origin.round(), rtol=1e-6, atol=1e-3):
        raise _indivisible(experts)
    return origin.round().long()


def activate(experts: Any, product: Tensor) -> Tensor:
    """What stands between an expert's two products: [n, columns of the first] -> [n, columns of the second]."""
    return experts._apply_gate(product) if experts.has_gate else experts.act_fn(product)


def _check(experts: Any, origin: Tensor, division: Division) -> None:
    """The gate of every part of the columns is that part of the gate: what dividing by columns rests on."""
    product = 200 * _probe(origin.shape[0], rows=4) - 10
    with torch.inference_mode():
        result = activate(experts, product)
        for part in divide(result.shape[1], division.mlp, MULTIPLE):
            found = activate(experts, product[:, (origin >= part.start) & (origin < part.stop)])
            wanted = result[:, part.start : part.stop]
            if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-5, atol=1e-9):
                raise _indivisible(experts)


def _probe(columns: int, rows: int = 1) -> Tensor:
    """Numbers from 0.01 to 0.11, where activations rise and limits do not hold."""
    generator = torch.Generator().manual_seed(11)
    return torch.rand(rows, columns, generator=generator, dtype=torch.float64, device="cpu") / 10 + 0.01


def _indivisible(experts: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Experts of type {type(experts).__name__} cannot be divided by columns.",
        "Their gate takes more of its input into a column than that column's own.",
        "Divide them as whole experts: --experts expert.",
    )
