"""The attention kernels of this version, fastest first, and the choice between them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.reference import ReferenceKernel

if TYPE_CHECKING:
    from quant.cpu.team import Team


def attention_kernels(team: Team | None) -> tuple[AttentionKernel, ...]:
    """The kernels of a processor with a team of threads, or of a GPU; the last one serves every shape."""
    if team is not None:
        # Compiles at import; a GPU never needs it.
        from kvcache.attention.processor import ProcessorKernel

        return ProcessorKernel(team), ReferenceKernel()
    # Loaded only where there is a GPU; a CUDA build of torch brings Triton on Linux, not everywhere.
    if torch.cuda.is_available() and find_spec("triton") is not None:
        from kvcache.attention.triton_card import current_card
        from kvcache.attention.triton_kernel import TritonKernel

        return TritonKernel(current_card()), ReferenceKernel()
    return (ReferenceKernel(),)


def choose_kernel(kernels: tuple[AttentionKernel, ...], shape: AttentionShape) -> AttentionKernel:
    """The first kernel that serves the shape."""
    return next(kernel for kernel in kernels if kernel.supports(shape))
