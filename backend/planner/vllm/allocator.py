"""What torch's caching allocator counts for a tensor beyond its bytes. vLLM reports weights as it counts them."""

from __future__ import annotations

_MIB = 1 << 20
# c10/cuda/CUDACachingAllocator.cpp: from 10 MiB on a tensor gets a segment of its own, in whole 2 MiB; what is left of
# one is split off only if it is more than 1 MiB.
_OWN_SEGMENT, _ROUND, _KEPT = 10 * _MIB, 2 * _MIB, _MIB


def rounding(size: int) -> int:
    """Bytes that count as allocated beside the tensor's own `size`."""
    if size < _OWN_SEGMENT:
        return 0
    left = -size % _ROUND
    return left if left <= _KEPT else 0
