"""Copies between pairs of GPUs and checks every byte: a program of its own, which hangs where the hardware does.

`python -m backend.hardware.probe_peers 0-1 0-2 ...` writes a line of JSON as it begins a pair and one when it has
finished it (`peer_probe.PairReport`), so that whoever started it knows which pair it hung at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor

from backend.hardware.peer_probe import PairReport

_LARGE, _SMALL = 64 << 20, 1 << 10  # bytes of a copy
_LARGE_COPIES, _SMALL_COPIES = 4, 50
_SEED = 17


def main(arguments: list[str]) -> None:
    pairs = [tuple(int(number) for number in argument.split("-")) for argument in arguments]
    if torch.cuda.device_count() <= max(number for pair in pairs for number in pair):
        raise SystemExit("torch does not see these GPUs")
    for first, second in pairs:
        # What fails until here (no memory is free) says nothing of the pair.
        buffers = [_buffer(torch.device("cuda", number)) for number in (first, second)]
        _tell(PairReport(first, second))
        _tell(_probe(first, second, buffers))


def _buffer(device: torch.device) -> Tensor:
    return torch.zeros(2, _LARGE, dtype=torch.uint8, device=device)


def _probe(first: int, second: int, buffers: list[Tensor]) -> PairReport:
    one, other = buffers
    direct = all(torch.cuda.can_device_access_peer(*pair) for pair in ((first, second), (second, first)))
    try:
        ways = [_way(one[0], other[1]), _way(other[0], one[1])]
    except RuntimeError as error:
        return PairReport(first, second, done=True, direct=direct, problem=str(error).strip().splitlines()[0])
    wrong = any(way[0] for way in ways)
    return PairReport(
        first,
        second,
        done=True,
        direct=direct,
        gigabytes=min(way[1] for way in ways),
        microseconds=max(way[2] for way in ways),
        problem="what arrives is not what was sent" if wrong else "",
    )


def _way(there: Tensor, arrived: Tensor) -> tuple[bool, float, float]:
    """One direction, between buffers of two devices: whether a byte was wrong, GB/s of large copies, microseconds of
    small ones."""
    sent = torch.randint(0, 256, (_LARGE,), dtype=torch.uint8, generator=torch.Generator().manual_seed(_SEED))
    there.copy_(sent)
    arrived.copy_(there)
    wrong = not torch.equal(arrived.cpu(), sent)
    # Every other byte is written by a kernel, straight into the other GPU's memory, where a whole run is copied by
    # the engine for that: some machines do only one of the two right.
    arrived.zero_()
    arrived[::2].copy_(there[::2])
    wrong = wrong or not torch.equal(arrived[::2].cpu(), sent[::2]) or bool(arrived[1::2].any())
    devices = (there.device, arrived.device)
    large = _seconds(lambda: arrived.copy_(there), _LARGE_COPIES, *devices)
    small = _seconds(lambda: arrived[:_SMALL].copy_(there[:_SMALL]), _SMALL_COPIES, *devices)
    return wrong, _LARGE / large / 1e9, small * 1e6


def _seconds(copy: Callable[[], Tensor], times: int, *devices: torch.device) -> float:
    """Of one copy, on average."""
    _wait(devices)
    begin = time.perf_counter()
    for _ in range(times):
        copy()
    _wait(devices)
    return (time.perf_counter() - begin) / times


def _wait(devices: Any) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _tell(report: PairReport) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
