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
    for argument in arguments:
        first, second = (int(number) for number in argument.split("-"))
        _tell(PairReport(first, second))
        _tell(_probe(first, second))


def _probe(first: int, second: int) -> PairReport:
    one, other = torch.device("cuda", first), torch.device("cuda", second)
    direct = all(torch.cuda.can_device_access_peer(*pair) for pair in ((one, other), (other, one)))
    try:
        ways = [_way(one, other), _way(other, one)]
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


def _way(source: torch.device, target: torch.device) -> tuple[bool, float, float]:
    """One direction: whether a byte was wrong, GB/s of large copies, microseconds of small ones."""
    sent = torch.randint(0, 256, (_LARGE,), dtype=torch.uint8, generator=torch.Generator().manual_seed(_SEED))
    there, arrived = sent.to(source), torch.zeros(_LARGE, dtype=torch.uint8, device=target)
    arrived.copy_(there)
    wrong = not torch.equal(arrived.cpu(), sent)
    # Every other byte is written by a kernel, straight into the other GPU's memory, where a whole run is copied by
    # the engine for that: some machines do only one of the two right.
    arrived.zero_()
    arrived[::2].copy_(there[::2])
    wrong = wrong or not torch.equal(arrived[::2].cpu(), sent[::2]) or bool(arrived[1::2].any())
    large = _seconds(lambda: arrived.copy_(there), _LARGE_COPIES, source, target)
    small = _seconds(lambda: arrived[:_SMALL].copy_(there[:_SMALL]), _SMALL_COPIES, source, target)
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
