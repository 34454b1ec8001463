"""TransferBook: the transfers that are ordered and not over, and what the finished ones tell of rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvcache.transfer import PageKey, Place, Tier, Transfer, TransferDone

Route = tuple[Tier, Tier]


class TransferBook:
    """Numbers orders, hands them out once, and strikes them off when they are done."""

    def __init__(self) -> None:
        self._next = 0
        self._ordered: list[Transfer] = []
        self._running: dict[int, Transfer] = {}
        self._by_route: Counter[Route] = Counter()
        self._bytes: Counter[Route] = Counter()
        self._seconds: dict[Route, float] = {}
        self.copied: Counter[Route] = Counter()  # pages that arrived
        self.failed = 0

    def order(self, key: PageKey, source: Place, target: Place, group: int, owner: bytes) -> int:
        """The number of a new transfer."""
        transfer = Transfer(self._next, key, source, target, group, owner)
        self._next += 1
        self._ordered.append(transfer)
        self._running[transfer.number] = transfer
        self._by_route[source.tier, target.tier] += 1
        return transfer.number

    def take(self) -> tuple[Transfer, ...]:
        """The orders since the last call."""
        ordered, self._ordered = self._ordered, []
        return tuple(ordered)

    def finish(self, done: TransferDone) -> Transfer:
        """The transfer that is over. Raises KeyError for a number that does not run."""
        transfer = self._running.pop(done.number)
        route = transfer.source.tier, transfer.target.tier
        self._by_route[route] -= 1
        if done.succeeded:
            self.copied[route] += 1
            self._bytes[route] += done.bytes
            self._seconds[route] = self._seconds.get(route, 0.0) + done.seconds
        else:
            self.failed += 1
        return transfer

    def rate(self, source: Tier, target: Tier) -> float:
        """Bytes per second while copying, 0 where not known."""
        seconds = self._seconds.get((source, target), 0.0)
        return self._bytes[source, target] / seconds if seconds > 0 else 0.0

    def running_to(self, target: Tier) -> int:
        """How many transfers to this tier are not over."""
        return sum(self._by_route[source, target] for source in Tier)

    @property
    def running(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Transfer]:
        """Those that are not over."""
        return iter(self._running.values())
