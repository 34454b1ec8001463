"""FakeTiers: a model of host and disk for PagedExecutor: transfers that take a while, may fail, and keep the promises.

It is as strict as the promises of kvcache.transfer allow, and does what they leave open in the worst order. The target
of a fetch holds nothing until the transfer is over; a source that must stay is read at the very end, so that whoever
lets go of it too early gets another page's content, which shows in the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from kvcache.statistics import DiskStatistics
from kvcache.transfer import PageKey, Tier, Transfer, TransferDone

Content = dict[int, tuple[int, int]]
PAGE_BYTES = 1000


class FakeDisk:
    """A DiskIndex with at most `capacity` records, oldest dropped first. `writable` may be set."""

    def __init__(self, capacity: int) -> None:
        self.records: dict[PageKey, Content] = {}
        self.writable = True
        self._capacity = capacity

    def __contains__(self, key: PageKey) -> bool:
        return key in self.records

    def touch(self, key: PageKey) -> None:
        if key in self.records:
            self.records[key] = self.records.pop(key)

    def statistics(self) -> DiskStatistics:
        return DiskStatistics(pages=len(self.records))

    def store(self, key: PageKey, content: Content) -> None:
        self.records[key] = content
        if len(self.records) > self._capacity:
            del self.records[next(iter(self.records))]


@dataclass
class Running:
    """A transfer on its way, with the bytes that it has read already, if any."""

    transfer: Transfer
    content: Content | None
    fails: bool
    steps: int


class FakeTiers:
    """Delays and failures come of `seed`; `failures` is the share of transfers that fail."""

    def __init__(self, host_pages: int = 0, disk: FakeDisk | None = None, seed: int = 0, failures: float = 0.0) -> None:
        self._host: list[Content] = [{} for _ in range(host_pages)]
        self.disk = disk
        self._chance = Random(seed)
        self.failures = failures
        self._running: list[Running] = []
        self.begun: list[Transfer] = []

    def begin(self, transfers: tuple[Transfer, ...], pool: list[Content]) -> None:
        """Before the batch computes. Device pages that the host takes are read now, all before any is written."""
        self.begun += transfers
        read = {one.number: dict(pool[one.source.index]) for one in transfers if one.source.tier is Tier.DEVICE}
        for one in transfers:
            fails = self._chance.random() < self.failures
            running = Running(one, None, fails, self._chance.randint(0, 4))
            if one.target.tier is Tier.HOST:
                self._host[one.target.index] = {} if fails else read[one.number]
            elif one.target.tier is Tier.DEVICE:
                pool[one.target.index] = {}
            self._running.append(running)

    def forget_running(self) -> None:
        """Whoever made the transfers is gone, and they with it."""
        self._running.clear()

    def done(self, pool: list[Content], patience: float) -> list[TransferDone]:
        """Those that are over by now; at least one of those that run, for who is patient."""
        for one in self._running:
            one.steps -= 1
        if patience and self._running and all(one.steps > 0 for one in self._running):
            self._chance.choice(self._running).steps = 0
        over = [one for one in self._running if one.steps <= 0]
        self._running = [one for one in self._running if one.steps > 0]
        self._chance.shuffle(over)
        return [self._end(one, pool) for one in over]

    def _end(self, running: Running, pool: list[Content]) -> TransferDone:
        one = running.transfer
        succeeded = not running.fails
        if succeeded and one.target.tier is not Tier.HOST:
            succeeded = self._copy(one, pool)
        return TransferDone(one.number, succeeded, PAGE_BYTES if succeeded else 0, 0.001 if succeeded else 0.0)

    def _copy(self, one: Transfer, pool: list[Content]) -> bool:
        disk = self.disk
        match one.source.tier, one.target.tier:
            case Tier.HOST, Tier.DEVICE:
                pool[one.target.index] = dict(self._host[one.source.index])
            case Tier.DISK, Tier.DEVICE:
                content = None if disk is None else disk.records.get(one.key)
                if content is None:
                    return False
                pool[one.target.index] = dict(content)
            case source, Tier.DISK if disk is not None and disk.writable:
                memory = self._host if source is Tier.HOST else pool
                disk.store(one.key, dict(memory[one.source.index]))
            case _:
                return False
        return True
