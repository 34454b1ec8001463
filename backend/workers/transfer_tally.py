"""TransferTally: a transfer is over when every rank has said so of its share. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvcache.transfer import Transfer, TransferDone


@dataclass(slots=True)
class _Shares:
    """What the ranks have said of one transfer so far."""

    missing: int
    succeeded: bool = True
    bytes: int = 0
    seconds: float = 0.0


class TransferTally:
    """Of the transfers that all ranks have begun."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._running: dict[int, _Shares] = {}
        self._over: list[TransferDone] = []

    @property
    def running(self) -> bool:
        """Whether a rank still owes the end of one."""
        return bool(self._running)

    def begin(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            self._running[transfer.number] = _Shares(self._ranks)

    def report(self, over: Iterable[TransferDone]) -> None:
        """One rank's transfers that have ended. Raises KeyError for one that does not run."""
        for one in over:
            shares = self._running[one.number]
            shares.missing -= 1
            shares.succeeded &= one.succeeded
            shares.bytes += one.bytes
            shares.seconds = max(shares.seconds, one.seconds)
            if shares.missing == 0:
                del self._running[one.number]
                self._over.append(self._end(one.number, shares))

    def take(self) -> list[TransferDone]:
        """Those that are over on all ranks, since the last call."""
        over, self._over = self._over, []
        return over

    def _end(self, number: int, shares: _Shares) -> TransferDone:
        """Succeeded only where it did on every rank; a rate is made of all ranks' bytes in the longest time."""
        if not shares.succeeded:
            return TransferDone(number, False, 0, 0.0)
        return TransferDone(number, True, shares.bytes, shares.seconds)
