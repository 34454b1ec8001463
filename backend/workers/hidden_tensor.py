"""hidden_tensor: hidden states from a tensor to bytes that may be sent, and back."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from backend.hidden_states import HiddenStates

_BYTE = torch.uint8


def to_bytes(hidden: Tensor) -> HiddenStates:
    """hidden [T, columns], on any device: a copy, which nobody writes to again."""
    rows, columns = hidden.shape
    own = torch.empty(rows, columns, dtype=hidden.dtype)
    own.copy_(hidden)
    data = own.view(_BYTE).numpy().data.cast("B").toreadonly()
    return HiddenStates(str(hidden.dtype).removeprefix("torch."), rows, columns, data)


def to_tensor(hidden: HiddenStates, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    """[rows, columns] of `dtype`, a copy in memory. Raises ValueError where these are of another form."""
    hidden.check(str(dtype).removeprefix("torch."), rows, columns)
    tensor = torch.empty(rows, columns, dtype=dtype)
    place = tensor.view(_BYTE).numpy().reshape(-1)
    numpy.copyto(place, numpy.frombuffer(hidden.data, numpy.uint8))
    return tensor
