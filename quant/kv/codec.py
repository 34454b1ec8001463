"""KVCodec: the seam between K or V as computed and as stored. Where stored values lie is the kernels' business."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class KVCodec(Protocol):
    """Called by reference kernels and by tests. Scales belong to a token and head, never to a batch: so a value as
    stored depends on nothing beside it."""

    def dtype(self, model: torch.dtype) -> torch.dtype:
        """The type of stored elements, where the model's own is `model`."""
        ...

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [..., size] as stored [..., size], and its scales [...] in bfloat16, None where the format has none."""
        ...

    def decode(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        """stored [..., size] and scales [...] as float32 [..., size]."""
        ...
