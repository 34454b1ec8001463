"""PageMover: carries out transfers beside compute, with the promises of `kvcache.transfer`. It decides nothing.

    copy thread     device ⇄ host, device ⇄ staging, in the order of the orders
    disk workers    staging → disk, host → disk, disk → staging

A copy that reads a device page is in the copy thread's queue when its batch begins; `settle` holds the batch back from
writing that page until it has happened. A page from disk is verified in staging, and then joins the same queue. The
copy thread never waits for a disk, so neither does compute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvcache.page_memory import PageMemory
from kvcache.tiers.busy_clock import BusyClock
from kvcache.tiers.copy_thread import Copy, CopyThread, Step
from kvcache.tiers.disk import DiskTier
from kvcache.tiers.disk_workers import DiskWorkers
from kvcache.tiers.host import HostTier
from kvcache.tiers.lane import Lane, lane_of
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.staging import INCOMING_PAGES, OUTGOING_PAGES, Staging
from kvcache.transfer import Tier, Transfer, TransferDone

_log = logging.getLogger("shardwise.tiers")


class PageMover:
    """`begin`, `settle` and `finished` are called by the one thread that computes, `close` by it at the end."""

    def __init__(
        self,
        memory: PageMemory,
        device: torch.device,
        host: HostTier | None,
        disk: DiskTier | None,
        lane: Lane | None = None,
    ) -> None:
        """Owns host and disk from now on. lane: how bytes travel; the device's own way unless given."""
        self._memory, self._host = memory, host
        self._lane = lane or lane_of(device)
        self._ledger = Ledger()
        self._copies = CopyThread(self._lane)
        self._disk = _DiskSide(disk, memory.page(0).nbytes, device) if disk is not None else None

    @property
    def holds_pages(self) -> bool:
        """Whether a copy may still read or write a device page: if not, there is nothing to settle."""
        return self._ledger.holds_pages

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Begins a batch's transfers, before it computes; waits for nothing."""
        if not transfers:
            return
        mark = self._lane.mark()
        self._ledger.begin(transfers)
        for transfer in transfers:
            self._begin(transfer, mark)

    def settle(self, pages: Iterable[int]) -> None:
        """Waits until no copy that has begun still reads or writes these device pages."""
        self._ledger.settle(pages)

    def finished(self, patience: float = 0.0) -> list[TransferDone]:
        """The transfers that ended since the last call; waits up to `patience` seconds for a first, if any runs."""
        return self._ledger.finished(patience)

    def close(self, patience: float = 0.5) -> None:
        """Gives transfers `patience` seconds to end, drops the rest, and closes the tiers.

        A thread that hangs on a disk keeps what it uses: the process is about to end.
        """
        self._ledger.await_all(patience)
        ended = self._disk is None or self._disk.workers.close(patience)
        if self._copies.close(patience) and ended:
            if self._disk is not None:
                self._disk.close()
            if self._host is not None:
                self._host.close()

    def _begin(self, transfer: Transfer, mark: Any) -> None:
        source, target, host, disk = transfer.source, transfer.target, self._host, self._disk
        match source.tier, target.tier:
            case Tier.DEVICE, Tier.HOST if host is not None:
                copy = Copy(host.page(target.index), self._memory.page(source.index), mark)
                self._copy(transfer, copy, lambda seconds: self._succeed(transfer, seconds))
            case Tier.HOST, Tier.DEVICE if host is not None:
                copy = Copy(self._memory.page(target.index), host.page(source.index), mark)
                self._copy(transfer, copy, lambda seconds: self._succeed(transfer, seconds))
            case Tier.HOST, Tier.DISK if host is not None and disk is not None:
                # Behind the copies that were ordered before: one of them may fill the slot.
                slot = host.page(source.index)
                self._copy(transfer, None, lambda _: self._store(disk, transfer, slot))
            case Tier.DEVICE, Tier.DISK if disk is not None:
                self._store_device_page(disk, transfer, mark)
            case Tier.DISK, Tier.DEVICE if disk is not None:
                disk.workers.read(lambda: self._fetch(disk, transfer, mark))
            case _:
                self._fail(transfer)

    def _copy(
        self,
        transfer: Transfer,
        copy: Copy | None,
        done: Callable[[float], None],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """release: called where the copy fails."""

        def failed() -> None:
            release()
            self._fail(transfer)

        self._copies.queue(Step(copy, done, failed))

    def _store_device_page(self, disk: _DiskSide, transfer: Transfer, mark: Any) -> None:
        """Copied in turn, so that the page is free, and written later. Where the disk is so far behind that no staging
        is left, the transfer fails: waiting would hold compute back."""
        index = disk.outgoing.take(0.0)
        if index is None:
            self._fail(transfer)
            return
        staged = disk.outgoing.page(index)

        def done(_: float) -> None:
            self._ledger.leave_pages(transfer)
            self._store(disk, transfer, staged, lambda: disk.outgoing.give(index))

        copy = Copy(staged, self._memory.page(transfer.source.index), mark)
        self._copy(transfer, copy, done, lambda: disk.outgoing.give(index))

    def _store(
        self, disk: _DiskSide, transfer: Transfer, page: Tensor, release: Callable[[], None] = lambda: None
    ) -> None:
        """Has a disk worker write these bytes; `release` is called when they are no longer read."""

        def write() -> None:
            with disk.writing.work() as seconds:
                stored = disk.store(transfer, page)
            release()
            if stored:
                self._succeed(transfer, seconds())
            else:
                self._fail(transfer)

        disk.workers.write(write)

    def _fetch(self, disk: _DiskSide, transfer: Transfer, mark: Any) -> None:
        """A disk worker's part of disk to device."""
        index = disk.incoming.take()
        if index is None:
            self._fail(transfer)
            return
        staged = disk.incoming.page(index)
        with disk.reading.work() as reading:
            right = disk.load(transfer, staged)
        if not right:
            disk.incoming.give(index)
            self._fail(transfer)
            return

        def done(copying: float) -> None:
            disk.incoming.give(index)
            self._succeed(transfer, reading() + copying)

        copy = Copy(self._memory.page(transfer.target.index), staged, mark)
        self._copy(transfer, copy, done, lambda: disk.incoming.give(index))

    def _succeed(self, transfer: Transfer, seconds: float) -> None:
        self._ledger.end(transfer, self._memory.page(0).nbytes, seconds)

    def _fail(self, transfer: Transfer) -> None:
        self._ledger.end(transfer, 0, 0.0)


class _DiskSide:
    """The disk tier with its threads and staging; what goes wrong here is a transfer without success."""

    def __init__(self, tier: DiskTier, page_bytes: int, device: torch.device) -> None:
        self._tier = tier
        self.incoming = Staging(INCOMING_PAGES, page_bytes, device)
        self.outgoing = Staging(OUTGOING_PAGES, page_bytes, device)
        self.reading, self.writing = BusyClock(), BusyClock()
        self.workers = DiskWorkers(tier.tend)

    def store(self, transfer: Transfer, page: Tensor) -> bool:
        try:
            return self._tier.store(transfer.key, page.numpy().data, group=transfer.group, owner=transfer.owner)
        except Exception:  # noqa: BLE001 - the edge of a thread: serving goes on
            _log.exception("a page could not be stored")
            return False

    def load(self, transfer: Transfer, into: Tensor) -> bool:
        try:
            return self._tier.load(transfer.key, into.numpy().data, group=transfer.group) is None
        except Exception:  # noqa: BLE001 - as above
            _log.exception("a page could not be fetched")
            return False

    def close(self) -> None:
        self._tier.close()
        self.incoming.close()
        self.outgoing.close()
