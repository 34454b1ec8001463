"""Times copies between pinned main memory and each GPU: a program of its own, since drivers may hang, and for torch.

`python -m backend.hardware.probe_copies COUNT` writes JSON: to the GPU and from it, GB/s, for each device of torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec
import torch

_BYTES, _COPIES = 64 << 20, 4


def main(count: str) -> None:
    if torch.cuda.device_count() < int(count):
        raise SystemExit("torch does not see these GPUs")
    rates = [copy_rates(torch.device("cuda", number)) for number in range(int(count))]
    sys.stdout.buffer.write(msgspec.json.encode(rates))


def copy_rates(device: torch.device) -> tuple[float, float]:
    """GB/s to it and from it."""
    here = torch.empty(_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(_BYTES, dtype=torch.uint8, device=device)
    return (
        _rate(lambda: there.copy_(here, non_blocking=True), device),
        _rate(lambda: here.copy_(there, non_blocking=True), device),
    )


def _rate(copy: Callable[[], object], device: torch.device) -> float:
    copy()  # the first one makes what the others use
    _wait(device)
    begin = time.perf_counter()
    for _ in range(_COPIES):
        copy()
    _wait(device)
    return _COPIES * _BYTES / (time.perf_counter() - begin) / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(*sys.argv[1:])
