"""Choosers: modules that choose which keys each token attends to, as DeepSeek's sparse attention has them.

As long as a sequence has no more positions than a chooser picks, it picks all of them, and attention is plain causal
attention: up to there a model is served without running its choosers, whose weights are not even read. Past that it is
not served. `chooser_probe` says which models do nothing else with what is chosen.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery.mask import Mask

# The child of an attention module that chooses, as the families name it.
CHOOSER = "indexer"
# What a module without one is told an earlier layer's choice by.
TOLD = "prev_topk_indices"


class EveryKey:
    """Stands in for the choice of all keys. Nothing can be asked of it, so who takes it only passes it on."""


class AnyMask:
    """Stands in for the mask where attention hands its chooser a part of it."""

    def __getitem__(self, part: object) -> AnyMask:
        return self


class Idle(nn.Module):
    """Stands where a chooser stood."""

    def forward(self, *unused: Any, **others: Any) -> EveryKey:
        return EveryKey()


def choosers(model: nn.Module) -> dict[str, nn.Module]:
    """Those of a model, by path."""
    found = dict(model.named_modules())
    return {
        path: module
        for path, module in found.items()
        if path.rpartition(".")[2] == CHOOSER and hasattr(found[path.rpartition(".")[0]], "layer_idx")
    }


def idle(model: nn.Module, paths: tuple[str, ...]) -> None:
    """Puts an Idle in each chooser's place, before anything else is replaced; attention gets a mask to hand to it."""
    for path in paths:
        model.set_submodule(path, Idle())
        attention = model.get_submodule(path.rpartition(".")[0])
        attention.register_forward_pre_hook(_give_mask, with_kwargs=True)


def _give_mask(
    module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if keywords.get("attention_mask") is not None:
        return None
    return arguments, keywords | {"attention_mask": AnyMask()}


@torch.no_grad()
def chosen_of(chooser: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], length: int) -> int | None:
    """How many of a sequence's `length` positions a chooser on meta picks for a token; None for another kind of answer.

    arguments, keywords: what it was called with in a trace of a few tokens.
    """
    tokens = next((given.shape[1] for given in arguments if isinstance(given, Tensor) and given.dim() == 3), 0)
    longer = partial(_longer, tokens, length)
    try:
        with torch.device("meta"):
            answer = chooser(*map(longer, arguments), **{name: longer(given) for name, given in keywords.items()})
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError):
        return None
    if not isinstance(answer, Tensor) or answer.is_floating_point() or answer.shape[:-1] != (1, length):
        return None
    return answer.shape[-1]


def _longer(tokens: int, length: int, given: Any) -> Any:
    """The argument as it is for a longer sequence."""
    if isinstance(given, Tensor) and given.dim() > 1 and given.shape[1] == tokens:
        return given.new_empty(given.shape[0], length, *given.shape[2:])
    if isinstance(given, Mask):
        return torch.empty(1, length, length, dtype=torch.bool, device="meta")
    if isinstance(given, tuple):
        return tuple(_longer(tokens, length, one) for one in given)
    return given
