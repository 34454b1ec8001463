"""Tensors as Triton's kernels take them: fp8 as its bytes, strides by name. No kernel of its own."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def as_stored(pages: Tensor) -> Tensor: ...
@overload
def as_stored(pages: None) -> None: ...
def as_stored(pages: Tensor | None) -> Tensor | None:
    """fp8 as bytes: kernels do the conversion, since not every architecture has the type."""
    if pages is not None and pages.dtype == torch.float8_e4m3fn:
        return pages.view(torch.uint8)
    return pages


def strides_of(name: str, pages: Tensor | None) -> dict[str, int]:
    """`name_page` and `name_head`: elements from a page, and from a kv head, to the next."""
    return {f"{name}_page": pages.stride(0) if pages is not None else 0,
            f"{name}_head": pages.stride(1) if pages is not None else 0}  # fmt: skip
