"""Attention that scales queries by position: modules that ask a cache where they are get their tokens' positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery.rope import RopeLengths


class FlatPositions:
    """Stands in for transformers' cache, as far as such a module looks at it: keeps nothing.

    A module adds the cache's length to the index of each of its tokens; in a flat batch of several sequences that sum
    is a token's position only if the length is each token's own.
    """

    def __init__(self, positions: Tensor) -> None:
        """positions: [T]."""
        self._lengths = positions - torch.arange(positions.shape[0], device=positions.device)

    def get_seq_length(self, layer: int = 0) -> Tensor:
        return self._lengths

    def update(self, key: Tensor, value: Tensor, *unused: Any) -> tuple[Tensor, Tensor]:
        return key, value


def tell_positions(model: nn.Module, lengths: RopeLengths) -> None:
    """Makes every module of a model that tempers its attention (llama4's layers without RoPE) know its positions."""
    for module in model.modules():
        if getattr(module, "attn_temperature_tuning", False):
            module.register_forward_pre_hook(partial(_tell, lengths), with_kwargs=True)


def _tell(
    lengths: RopeLengths, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if lengths.positions is None:
        raise RuntimeError("positions were not set for this pass")
    return arguments, keywords | {"past_key_values": FlatPositions(lengths.positions)}
