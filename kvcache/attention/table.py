"""The attention kernels of this version, fastest first, and the choice between them."""

from __future__ import annotations

from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.reference import ReferenceKernel


def attention_kernels(device_type: str, threads: int) -> tuple[AttentionKernel, ...]:
    """The kernels for a kind of device; the last one serves every shape."""
    if device_type == "cpu":
        # Compiles at import; a GPU never needs it.
        from kvcache.attention.processor import ProcessorKernel

        return ProcessorKernel(threads), ReferenceKernel()
    return (ReferenceKernel(),)


def choose_kernel(kernels: tuple[AttentionKernel, ...], shape: AttentionShape) -> AttentionKernel:
    """The first kernel that serves the shape."""
    return next(kernel for kernel in kernels if kernel.supports(shape))
