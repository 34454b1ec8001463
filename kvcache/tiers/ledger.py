"""Ledger: which transfers run, which device pages they still read or write, and how those that ended went."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from kvcache.transfer import Tier, Transfer, TransferDone


class Ledger:
    """Entered by the thread that orders, closed by those that carry out. A transfer ends once; later words are lost."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._running: dict[int, tuple[int, ...]] = {}
        self._pages: Counter[int] = Counter()
        self._done: list[TransferDone] = []

    @property
    def holds_pages(self) -> bool:
        return bool(self._pages)

    def begin(self, transfers: Sequence[Transfer]) -> None:
        with self._change:
            for transfer in transfers:
                pages = tuple(place.index for place in (transfer.source, transfer.target) if place.tier is Tier.DEVICE)
                self._running[transfer.number] = pages
                self._pages.update(pages)

    def leave_pages(self, transfer: Transfer) -> None:
        """The transfer neither reads nor writes a device page any more."""
        with self._change:
            self._leave(transfer)

    def end(self, transfer: Transfer, copied: int, seconds: float) -> None:
        """copied: bytes; 0 for a transfer that failed."""
        with self._change:
            self._leave(transfer)
            if self._running.pop(transfer.number, None) is not None:
                self._done.append(TransferDone(transfer.number, copied > 0, copied, seconds))
            self._change.notify_all()

    def settle(self, pages: Iterable[int]) -> None:
        """Waits until no transfer holds any of these pages."""
        if not self._pages:
            return
        wanted = set(pages)
        with self._change:
            self._change.wait_for(lambda: wanted.isdisjoint(self._pages))

    def finished(self, patience: float) -> list[TransferDone]:
        """Those that ended since the last call; waits up to `patience` seconds for a first, if any runs."""
        if not self._running and not self._done:
            return []
        with self._change:
            self._change.wait_for(lambda: self._done or not self._running, patience)
            done, self._done = self._done, []
            return done

    def await_all(self, patience: float) -> bool:
        """Whether all have ended, after up to `patience` seconds."""
        with self._change:
            return self._change.wait_for(lambda: not self._running, patience)

    def _leave(self, transfer: Transfer) -> None:
        pages = self._running.get(transfer.number, ())
        if not pages:
            return
        self._running[transfer.number] = ()
        for page in pages:
            self._pages[page] -= 1
            if not self._pages[page]:
                del self._pages[page]
        self._change.notify_all()
