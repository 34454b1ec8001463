"""Probe: whether a group adds up right, with the same bits on every rank, and how long it takes. Who is probed is
`open_group`'s."""

from __future__ import annotations

import time
import zlib

import torch
from torch import Tensor

from backend.parallel.group import Group

# About a token's row, a batch of rows, and chunks of prompts.
SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23)
# Calls in a row, from the smallest size to the largest, and how often: the best counts.
CALLS = (20, 20, 10, 4, 2)
ROUNDS = 3
# Numbers of elements to add up: one, an odd count, parts of several slots, and what symmetric memory serves.
COUNTS = (1, 577, 8192, 200_001)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def fault(group: Group, device: torch.device) -> int | None:
    """The number of elements whose sum is wrong here; None where all sums are right. Every rank calls it at once."""
    for dtype, tolerance in TOLERANCES.items():
        for count in COUNTS:
            parts = [_pattern(count, rank, dtype) for rank in range(group.size)]
            wanted = torch.stack([part.float() for part in parts]).sum(0)
            x = parts[group.rank].to(device)
            if not _served(group, x):
                continue
            group.all_reduce(x)
            if not torch.allclose(x.cpu().float(), wanted, rtol=tolerance, atol=tolerance):
                return count
    return None


def fingerprint(group: Group, device: torch.device) -> int:
    """A number that is equal on all ranks where they end with the same bits: sums that round, in several types."""
    found = 0
    for dtype in TOLERANCES:
        for count in COUNTS:
            x = _pattern(count, group.rank, dtype).to(device)
            if _served(group, x):
                group.all_reduce(x)
                found = zlib.crc32(x.cpu().view(torch.uint8).numpy().tobytes(), found)
    return found


def measure(group: Group, device: torch.device) -> dict[int, float]:
    """Seconds of an all-reduce by bytes, for the sizes that the group serves. Every rank calls it at once."""
    return {
        size: _seconds(group, x, calls)
        for size, calls in zip(SIZES, CALLS, strict=True)
        if _served(group, x := torch.zeros(size // 2, dtype=torch.bfloat16, device=device))
    }


def _seconds(group: Group, x: Tensor, calls: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        # The first brings the ranks together, and memory into place.
        group.all_reduce(x)
        _finish(x)
        began = time.perf_counter()
        for _ in range(calls):
            group.all_reduce(x)
        _finish(x)
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def _finish(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _pattern(count: int, rank: int, dtype: torch.dtype) -> Tensor:
    """[count] of both signs and many sizes, a rank's own, and the same wherever it is made."""
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    return (torch.sin(steps * (rank + 1) * 0.7) * (1 + steps % 7)).to(dtype)


def _served(group: Group, x: Tensor) -> bool:
    serves = getattr(group, "serves", None)
    return serves is None or serves(x)
