"""Arena: memory in huge pages for what kernels stream through: weights, and the pool of K and V.

With pages of 4 KiB the processor's own prefetching stops at each page's end, and a stream does not reach what the
memory gives.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
CHUNK_BYTES = 32 << 20
LINE_BYTES = 64


def huge_memory(size: int) -> Tensor:
    """`size` bytes from a huge page's border on: [size] uint8, zeros, backed by memory only as they are first written.

    Where the system gives no huge pages, ordinary ones do. The memory lives as long as a view of the tensor.
    """
    area = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel without them
            area.madvise(advice)
    whole = torch.frombuffer(area, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + size]


class Arena:
    """Takes copies of tensors in, one behind the other, in chunks of huge memory; nothing is taken out again."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def place(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of `tensor` that begins at a cache line."""
        size = tensor.nbytes
        if self._used + size > self._chunk.nbytes:
            self._chunk, self._used = huge_memory(max(size, CHUNK_BYTES)), 0
        place = self._chunk[self._used : self._used + size]
        self._used += -(-size // LINE_BYTES) * LINE_BYTES
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
