"""Modules of a divided model that need what other ranks computed: sums, wide norms, the vocabulary's ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backend.parallel.group import Group
from backend.surgery.linears import ServedLinear, served_linears
from backend.surgery.norm import ServedRMSNorm


class DividedRMSNorm(nn.Module):
    """RMSNorm over elements that lie on several ranks: [..., own] -> the same, by the mean square of all of them."""

    asks_others = True

    def __init__(self, norm: ServedRMSNorm, size: int, holders: int, group: Group) -> None:
        """norm: with this rank's weight; size: elements of the whole norm; holders: ranks that hold just these."""
        super().__init__()
        self.weight, self.epsilon, self.offset = norm.weight, norm.epsilon, norm.offset
        self._share, self._group = 1.0 / (size * holders), group

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean = wide.square().sum(-1, keepdim=True) * self._share
        self._group.all_reduce(mean)
        normed = wide * torch.rsqrt(mean + self.epsilon)
        return (normed * (self.weight.float() + self.offset)).to(x.dtype)


class VocabularyPart(nn.Module):
    """An embedding of which each rank holds some rows: every rank ends with the rows of all tokens."""

    def __init__(self, table: nn.Module, own: range, group: Group) -> None:
        """table: the family's own embedding, over this rank's rows."""
        super().__init__()
        self.table = table
        self._own, self._group = own, group

    @property
    def weight(self) -> Tensor:
        """The rows of this rank; some families ask for their type."""
        weight: Any = self.table.weight
        return weight

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [..., T] int64 -> [..., T, hidden]."""
        places = tokens - self._own.start
        foreign = (places < 0) | (places >= len(self._own))
        rows = self.table(places.masked_fill(foreign, 0)).masked_fill(foreign.unsqueeze(-1), 0).contiguous()
        self._group.all_reduce(rows)
        return rows


class Sum:
    """Adds up what the ranks' parts of a linear layer's columns gave."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def __call__(self, product: Tensor) -> Tensor:
        """[..., out] in place, the same on every rank."""
        self._group.all_reduce(product)
        return product


class Gather:
    """Puts the ranks' logits side by side on the first rank, which alone samples; the others get zeros."""

    def __init__(self, parts: Sequence[range], group: Group) -> None:
        """parts: each rank's rows of the vocabulary, in order."""
        self._widths, self._group = [len(part) for part in parts], group

    def __call__(self, own: Tensor) -> Tensor:
        """own: [..., this rank's rows] -> [..., vocabulary]."""
        shape = (*own.shape[:-1], sum(self._widths))
        if own.numel() == 0:
            return own.new_zeros(shape)
        widest = max(self._widths)
        gathered = self._group.gather(nn.functional.pad(own, (0, widest - own.shape[-1])).contiguous())
        if gathered is None:
            return own.new_zeros(1).expand(shape)
        return torch.cat([part[..., :width] for part, width in zip(gathered, self._widths, strict=True)], dim=-1)


def add_up(model: nn.Module, summed: frozenset[str], group: Group) -> None:
    """Has every linear layer named in `summed` end with a sum over the ranks."""
    for _, linear in served_linears(model):
        if any(part.name in summed for part in linear.parts):
            linear.finish = Sum(group)


def divide_vocabulary(model: Any, parts: Sequence[range], group: Group) -> None:
    """After loading: gives the output layer its gather, and the embedding its sum, where they were divided.

    Of a stage, one or both may be elsewhere.
    """
    own = parts[group.rank]
    output, table = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(output, ServedLinear) and output.weight.shape[0] == len(own):
        output.finish = Gather(parts, group)
    if isinstance(table, nn.Embedding) and table.num_embeddings == len(own):
        path = next(path for path, module in model.named_modules() if module is table)
        model.set_submodule(path, VocabularyPart(table, own, group))
