"""What ranks send each other and stages hand on: bytes and seconds. How fast a Link is belongs to `links`."""

from __future__ import annotations

from backend.hardware.cluster import Network
from backend.planner.links import Link
from backend.planner.timing.work import Work


def all_reduce_seconds(way: Link | Network | None, ranks: int, count: int, own_kernel: bool = True) -> float:
    """Seconds to add up `count` bytes over `ranks` ranks; nothing where no way is given (processes of a CPU).

    own_kernel: whether the engine has a kernel for small messages.
    """
    if way is None or ranks < 2:
        return 0.0
    if isinstance(way, Network):
        rounds = 2 * (ranks - 1)
        return way.latency * max(1.0, rounds / 2) + rounds / ranks * count / (way.reached * 1e9)
    return way.all_reduce_seconds(ranks, count, own_kernel)


def send_seconds(way: Link | Network | None, count: int) -> float:
    """Seconds to hand `count` bytes on to one other."""
    if way is None:
        return 0.0
    if isinstance(way, Network):
        return way.latency + count / (way.reached * 1e9)
    return way.send_seconds(count)


def token_bytes(work: Work) -> int:
    """Bytes that each rank sends for one token: two all-reduces a layer, 2 (n - 1) / n each, and one hand-over."""
    message = work.hidden * work.element
    most = 0
    for number, stage in enumerate(work.stages):
        ranks = len(stage.ranks)
        added = 2 * stage.ranks[0].layers * 2 * (ranks - 1) * message // ranks
        handed = message if number < len(work.stages) - 1 else 0
        most = max(most, added + handed)
    return most
