"""LowerTiers: what host and disk hold, and the orders that move pages between tiers. Device pages are CacheManager's.

    device --offload, on eviction--> host --store, wanted twice or idle--> disk
       ^------------------------------+-----------------------------------+      fetch, on a hit

A page fetched from the host stays there too, so that evicting it again costs nothing.
"""

from __future__ import annotations

from itertools import islice

from kvcache.host_index import HostIndex, HostPage
from kvcache.lost_keys import LostKeys
from kvcache.prefix_index import IndexedPage
from kvcache.transfer import DiskIndex, PageKey, Place, Tier, Transfer, TransferDone
from kvcache.transfer_book import TransferBook

SECOND_USE = 2
# At most this many pages are on their way to the disk while something runs, and while nothing does.
BUSY_STORES = 8
IDLE_STORES = 64
# How many pages next to be evicted are looked at for what the disk should have.
LOOKED_AT = 8
# So many keys are remembered for each page that memory holds, after their pages are gone.
LOST_PAGES = 8
DISK = Place(Tier.DISK)


class LowerTiers:
    """Host and disk as the cache manager sees them. Either may be missing."""

    def __init__(
        self, host_pages: int, disk: DiskIndex | None, device_pages: int, *, keeps_on_disk: bool = True
    ) -> None:
        """keeps_on_disk: whether pages go to the disk to be kept, and not only where they are handed over."""
        self.host = HostIndex(host_pages)
        self.disk = disk
        self.book = TransferBook()
        self.evictions = 0
        # Only a disk asks how often a page was wanted.
        self._lost = LostKeys(LOST_PAGES * (host_pages + device_pages) if disk is not None else 0)
        self._keeps_on_disk = keeps_on_disk
        self._arriving: set[PageKey] = set()
        self._storing: set[PageKey] = set()
        # A slot next to be evicted is stored while there are still this many free ones.
        self._low_water = host_pages // 16

    def __contains__(self, key: PageKey) -> bool:
        return key in self.host or (self.disk is not None and key in self.disk)

    @property
    def there(self) -> bool:
        """Whether there is any lower tier."""
        return self.host.total > 0 or self.disk is not None

    @property
    def keeps_on_disk(self) -> bool:
        """Whether pages go to a disk to be kept there."""
        return self._keeps_on_disk and self.disk is not None

    def tier_of(self, key: PageKey) -> Tier:
        """The faster tier of those that hold this key, of which one does."""
        return Tier.HOST if key in self.host else Tier.DISK

    def is_arriving(self, key: PageKey) -> bool:
        """Whether this page is being moved right now, so that it can be had soon, and not before."""
        return key in self._arriving or (key in self.host and not self.host.arrived(key))

    def offload(self, entry: IndexedPage) -> None:
        """The place of this device page is about to be given to another: the host takes its content, if it can."""
        if entry.key in self.host:
            self.host.touch(entry.key, entry.uses)
            return
        if self.host.total == 0 or not self._free_a_slot():
            self._lose(entry.key)
            return
        page = self.host.add(entry.key, entry.group, entry.owner, entry.uses, entry.stored)
        if page is not None:
            source, target = Place(Tier.DEVICE, entry.page), Place(Tier.HOST, page.slot)
            page.offload = self.book.order(entry.key, source, target, entry.group, entry.owner)

    def _free_a_slot(self) -> bool:
        """Sees to it that a slot is free, unless all are being read."""
        if self.host.free:
            return True
        for page in list(islice(self.host.in_order(), LOOKED_AT)):
            if self._worth_storing(page) and self.book.running_to(Tier.DISK) < BUSY_STORES:
                self._store_from_host(page)
            else:
                self._evict(page)
                return True
        page = next(self.host.in_order(), None)
        if page is not None:
            self._evict(page)
        return page is not None

    def _evict(self, page: HostPage) -> None:
        self.host.drop(page.key)
        self.evictions += 1
        self._lose(page.key)

    def _lose(self, key: PageKey) -> None:
        """No memory holds this page any more."""
        if self.disk is not None and key not in self.disk:
            self._lost.add(key)

    def uses_of(self, key: PageKey) -> int:
        """How often a page that was just computed has been wanted: twice, if it had been here before."""
        return SECOND_USE if self._lost.take(key) else 1

    def store_ahead(self) -> None:
        """Begins to store what the host will evict next, so that evicting need not wait for the disk."""
        if not self.keeps_on_disk or self.host.total == 0 or self.host.free > self._low_water:
            return
        for page in list(islice(self.host.in_order(), LOOKED_AT)):
            if self.book.running_to(Tier.DISK) < BUSY_STORES and self._worth_storing(page):
                self._store_from_host(page)

    def is_storing(self, key: PageKey) -> bool:
        """Whether this page is on its way to the disk."""
        return key in self._storing

    def on_disk(self, key: PageKey) -> bool:
        return self.disk is not None and key in self.disk

    def may_store(self, entry: IndexedPage | HostPage) -> bool:
        """Whether the disk would take this page, and does not have it."""
        disk = self.disk
        if disk is None or entry.stored or entry.key in self._storing:
            return False
        return disk.writable and entry.key not in disk

    def _worth_storing(self, page: HostPage) -> bool:
        return self.keeps_on_disk and page.uses >= SECOND_USE and page.offload is None and self.may_store(page)

    def _store_from_host(self, page: HostPage) -> None:
        self.host.pin(page)
        self._storing.add(page.key)
        page.stored = True
        self.book.order(page.key, Place(Tier.HOST, page.slot), DISK, page.group, page.owner)

    def store_from_device(self, entry: IndexedPage) -> None:
        """The device page must stay as it is until the transfer is over."""
        self._storing.add(entry.key)
        entry.stored = True
        self.book.order(entry.key, Place(Tier.DEVICE, entry.page), DISK, entry.group, entry.owner)

    def store_idle(self) -> None:
        """Stores what the host has and the disk has not, the newest first, a bounded number."""
        if not self.keeps_on_disk:
            return
        room = IDLE_STORES - self.book.running_to(Tier.DISK)
        newest = self.host.in_order(newest_first=True)
        wanted = (page for page in newest if page.offload is None and self.may_store(page))
        # The disk evicts what came first, first: so tails of chains come before their beginnings.
        for page in reversed(list(islice(wanted, max(0, room)))):
            self._store_from_host(page)

    def hold(self, key: PageKey) -> HostPage | None:
        """Keeps a page that is about to be fetched: where it lies in the host; None where the disk has it."""
        page = self.host.find(key)
        if page is not None:
            self.host.pin(page)
        elif self.disk is not None:
            self.disk.touch(key)
        self._arriving.add(key)
        return page

    def fetch(self, key: PageKey, held: HostPage | None, page: int, group: int, owner: bytes) -> int:
        """Orders what `hold` held into a device page, which nobody may read before it is there: the order's number."""
        source = DISK if held is None else Place(Tier.HOST, held.slot)
        return self.book.order(key, source, Place(Tier.DEVICE, page), group, owner)

    def finish(self, done: TransferDone) -> Transfer:
        """Takes in the end of a transfer. What it means for device pages is the caller's."""
        transfer = self.book.finish(done)
        key, source, target = transfer.key, transfer.source, transfer.target
        if target.tier is Tier.DEVICE:
            self._arriving.discard(key)
        if target.tier is Tier.DISK:
            self._storing.discard(key)
        self._correct(transfer, done.succeeded)
        if source.tier is Tier.HOST:
            self.host.unpin(key, source.index, newest=target.tier is Tier.DEVICE)
        return transfer

    def _correct(self, transfer: Transfer, succeeded: bool) -> None:
        """What the host says of this key after a transfer that may have failed."""
        page = self.host.find(transfer.key)
        if page is None:
            return
        if page.offload == transfer.number and succeeded:
            page.offload = None
        elif not succeeded and (page.offload == transfer.number or _was_fetched_from(page, transfer)):
            # An offload that failed left nothing; and what cannot be fetched is of no use.
            self.host.drop(transfer.key)

    def forget(self, key: PageKey) -> None:
        """The content of this page is wrong."""
        if key in self.host:
            self.host.drop(key)

    def lose_host(self) -> None:
        """The host's content is gone; no transfer runs."""
        for page in tuple(self.host.in_order()):
            self.host.drop(page.key)

    def check_integrity(self) -> None:
        """Raises AssertionError where slots are lost, or held without a transfer that reads them."""
        self.host.check_integrity()
        arriving = {one.key for one in self.book if one.target.tier is Tier.DEVICE}
        storing = {one.key for one in self.book if one.target.tier is Tier.DISK}
        assert self._arriving == arriving, "a page is waited for that nobody fetches"
        assert self._storing == storing, "a page counts as on its way to the disk that is not"
        assert self.host.pins() == sum(one.source.tier is Tier.HOST for one in self.book), "slots are held for nobody"


def _was_fetched_from(page: HostPage, transfer: Transfer) -> bool:
    return transfer.target.tier is Tier.DEVICE and transfer.source == Place(Tier.HOST, page.slot)
