"""all_reduce_seconds: adding up over a link, from what was measured on links like it. What joins whom is `links`'."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Literal

from backend.hardware.all_reduce_table import AllReduceFacts, all_reduce_table

Kind = Literal["nvlink", "pcie", "host"]

_MEASURED_RANKS = (2, 4, 8)
# The link whose GPUs do not meet below one processor: what is far is taken for alike.
_FAR = "pcie4-x16-l40s"
# Through main memory, a message takes 14 us more, and moves at 11.3 GB/s between two where GPUs that write to each
# other reach 20.1 (RTX 3090, club-3090 at 4a29ab57), at 4.9 among four where these reach 5.2 (nccl issue 445).
_HOST_SECONDS, _HOST_PAIR, _HOST_MORE = 14e-6, 1.78, 1.07


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds by bytes of a message, of one link, number of ranks and library; neither falls."""

    link: str
    bandwidth: float
    bytes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, count: float, bandwidth: float) -> float:
        """For `count` bytes, on a link alike of that bandwidth: what a message of no size takes stays."""
        least = self.seconds[0]
        return least + (self._measured(count) - least) * self.bandwidth / bandwidth

    def _measured(self, count: float) -> float:
        if count <= self.bytes[0]:
            return self.seconds[0]
        for (low, fast), (high, slow) in pairwise(zip(self.bytes, self.seconds, strict=True)):
            if count <= high:
                part = math.log(count / low) / math.log(high / low)
                return fast * (slow / fast) ** part
        return self.seconds[-1] * count / self.bytes[-1]


def all_reduce_seconds(
    kind: Kind, bandwidth: float, near: bool, ranks: int, count: float, own_kernel: bool = False
) -> float:
    """Seconds to add up `count` bytes over `ranks` ranks, by NCCL or, where it is faster, an engine's own kernel.

    A link is taken for no slower than a worse one that was measured, whichever card's clock made that one fast.

    bandwidth: GB/s in one direction. near: whether GPUs meet below one processor.
    """
    if ranks < 2:
        return 0.0

    def among(measured: int, size: float = count) -> float:
        return _seconds(kind, bandwidth, near, measured, size, own_kernel)

    most = _MEASURED_RANKS[-1]
    if ranks > most:
        least = among(most, 0)
        moving = (ranks - 1) / ranks / ((most - 1) / most)
        return least * ranks / most + (among(most) - least) * moving
    fewer = max(number for number in _MEASURED_RANKS if number <= ranks)
    more = min(number for number in _MEASURED_RANKS if number >= ranks)
    part = (ranks - fewer) / (more - fewer) if more > fewer else 0.0
    return among(fewer) * (1 - part) + among(more) * part


def _seconds(kind: Kind, bandwidth: float, near: bool, ranks: int, count: float, own_kernel: bool) -> float:
    """The least of what the curves that apply tell."""
    if kind == "host":
        slower = _HOST_PAIR if ranks == 2 else _HOST_MORE
        return _HOST_SECONDS + _least(_pcie(bandwidth / slower, False, ranks, False), count)
    pcie = _pcie(bandwidth, near or kind == "nvlink", ranks, own_kernel)
    return _least([*pcie, *_nvlink(bandwidth, ranks, own_kernel)] if kind == "nvlink" else pcie, count)


def _least(curves: list[tuple[Curve, float]], count: float) -> float:
    return min(curve.at(count, bandwidth) for curve, bandwidth in curves)


def _pcie(bandwidth: float, near: bool, ranks: int, own_kernel: bool) -> list[tuple[Curve, float]]:
    """Curves, and the bandwidth that each is read at."""
    return [(curve, bandwidth) for curve in _curves("pcie", ranks, own_kernel) if near or curve.link == _FAR]


def _nvlink(bandwidth: float, ranks: int, own_kernel: bool) -> list[tuple[Curve, float]]:
    """Of slower links, as measured; of the next faster one, or of the fastest, scaled to this bandwidth."""
    curves = _curves("nvlink", ranks, own_kernel)
    slower = [(curve, curve.bandwidth) for curve in curves if curve.bandwidth <= bandwidth]
    faster = sorted({curve.bandwidth for curve in curves if curve.bandwidth > bandwidth})
    scaled = faster[0] if faster else max(curve.bandwidth for curve in curves)
    return [*slower, *((curve, bandwidth) for curve in curves if curve.bandwidth == scaled)]


@cache
def _curves(kind: str, ranks: int, own_kernel: bool) -> tuple[Curve, ...]:
    return tuple(
        _curve(facts)
        for facts in all_reduce_table()
        if facts.kind == kind and facts.ranks == ranks and (own_kernel or facts.library == "nccl")
    )


def _curve(facts: AllReduceFacts) -> Curve:
    """Where a larger message was faster, the smaller one is taken to be as fast: libraries change their ways there."""
    falling = accumulate((microseconds * 1e-6 for microseconds in reversed(facts.us)), min)
    return Curve(facts.link, facts.bandwidth, facts.bytes, tuple(falling)[::-1])
