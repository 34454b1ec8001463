"""Scheduler over host and disk, case by case: what is ordered when, and what its end does."""

from __future__ import annotations

from backend.batch import Batch, Sampled
from backend.events import End, Start
from backend.request import Request, Sampling
from backend.scheduler import Scheduler
from kvcache.cache_manager import CacheManager
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.transfer import Tier, TransferDone
from tests.fakes.tiers import FakeDisk

LAYOUT = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4),), 2, page_tokens=4)
FIRST = Request(id="first", prompt=tuple(range(13)), sampling=Sampling(max_tokens=1), owner=b"o" * 16)
OTHER = Request(id="other", prompt=tuple(range(50, 69)), sampling=Sampling(max_tokens=1))


class Desk:
    """A scheduler of five device pages, which OTHER needs all; its transfers end when a test says so."""

    def __init__(self, host_pages: int = 8, disk: FakeDisk | None = None, pages: int = 5) -> None:
        cache = CacheManager(LAYOUT, pages, host_pages=host_pages, disk=disk)
        self.scheduler = Scheduler(cache, max_context=100, max_sequences=4, step_tokens=32)
        self.disk = disk
        self.orders: list[tuple[int, Tier, Tier]] = []
        self.starts: list[Start] = []
        self.ends: list[End] = []

    def step(self) -> Batch:
        batch = self.scheduler.schedule(0.0)
        self.note(batch)
        _, ends = self.scheduler.commit(batch, [Sampled(7) if part.sample else None for part in batch.slices])
        self.starts += self.scheduler.take_starts()
        self.ends += ends
        self.scheduler.check_integrity()
        return batch

    def note(self, batch: Batch) -> None:
        self.orders += [(one.number, one.source.tier, one.target.tier) for one in batch.transfers]
        for one in batch.transfers:
            if one.target.tier is Tier.DISK and self.disk is not None:
                self.disk.store(one.key, {})

    def run(self, request: Request) -> None:
        self.scheduler.add(request, 0.0)
        while self.scheduler.has_work:
            self.step()
            self.end_transfers()

    def end_transfers(self, succeeded: bool = True) -> list[tuple[Tier, Tier]]:
        """The routes of those that ran."""
        routes = [(source, target) for _, source, target in self.orders]
        self.scheduler.transfers_done(
            [TransferDone(number, succeeded, 64 if succeeded else 0, 0.001) for number, _, _ in self.orders]
        )
        self.orders = []
        self.scheduler.check_integrity()
        return routes


def test_what_is_evicted_goes_to_the_host_and_is_fetched_when_it_is_hit():
    desk = Desk()
    desk.run(FIRST)
    desk.run(OTHER)
    assert desk.scheduler.statistics().cache.offloaded_pages == 3
    desk.scheduler.add(FIRST, 0.0)
    batch = desk.step()
    assert batch.slices == ()
    assert [one.source.tier for one in batch.transfers if one.target.tier is Tier.DEVICE] == [Tier.HOST] * 3
    assert {one.owner for one in batch.transfers if one.target.tier is Tier.DEVICE} == {FIRST.owner}
    # Nobody names the pages before they have arrived.
    assert desk.step().slices == ()
    desk.end_transfers()
    (part,) = desk.step().slices
    assert (part.start, len(part.tokens)) == (12, 1)
    assert desk.starts[-1] == Start("first", 12)
    statistics = desk.scheduler.statistics().cache
    assert (statistics.host_hit_tokens, statistics.host_fetched_pages) == (12, 3)


def test_a_page_on_its_way_to_the_host_is_waited_for():
    desk = Desk()
    desk.run(FIRST)
    desk.scheduler.add(OTHER, 0.0)
    desk.step()
    desk.scheduler.add(FIRST, 0.0)
    assert desk.step() == Batch(3, ())
    desk.end_transfers()
    assert len([one for one in desk.step().transfers if one.target.tier is Tier.DEVICE]) == 3


def test_a_fetch_that_fails_is_a_miss():
    desk = Desk()
    desk.run(FIRST)
    desk.run(OTHER)
    desk.scheduler.add(FIRST, 0.0)
    desk.step()
    desk.end_transfers(succeeded=False)
    (part,) = desk.step().slices
    assert (part.start, len(part.tokens)) == (0, 13)
    assert desk.starts[-1] == Start("first", 0)
    assert desk.scheduler.statistics().cache.failed_transfers >= 3


def test_an_offload_that_fails_leaves_nothing_to_hit():
    desk = Desk()
    desk.run(FIRST)
    desk.scheduler.add(OTHER, 0.0)
    desk.step()
    desk.end_transfers(succeeded=False)
    assert desk.scheduler.statistics().cache.host_pages_used == 0


def test_pages_stay_held_when_the_one_that_fetches_is_cancelled():
    desk = Desk()
    desk.run(FIRST)
    desk.run(OTHER)
    desk.scheduler.add(FIRST, 0.0)
    desk.step()
    desk.scheduler.cancel("first")
    desk.step()
    assert desk.ends[-1] == End("first", "cancelled")
    assert desk.scheduler.statistics().cache.pages_used == 3
    desk.end_transfers()
    statistics = desk.scheduler.statistics().cache
    # They have arrived, and wait for the next who wants them.
    assert (statistics.pages_used, statistics.host_fetched_pages) == (0, 3)
    desk.run(FIRST)
    assert desk.starts[-1] == Start("first", 12)


def test_computing_is_preferred_where_it_is_cheaper():
    desk = Desk()
    desk.run(FIRST)
    desk.run(OTHER)
    desk.run(FIRST)
    desk.run(OTHER)
    desk.scheduler.observe_compute(1000, 0.0001)
    desk.run(FIRST)
    assert desk.starts[-1] == Start("first", 0)
    assert desk.scheduler.statistics().cache.declined_fetches == 1


def test_only_what_was_wanted_twice_is_stored_while_busy():
    disk = FakeDisk(100)
    desk = Desk(host_pages=3, disk=disk)
    desk.run(FIRST)
    desk.run(OTHER)
    assert disk.records == {}
    desk.run(FIRST)  # fetched: wanted twice
    desk.run(OTHER)
    desk.run(Request(id="third", prompt=tuple(range(80, 99)), sampling=Sampling(max_tokens=1)))
    desk.run(Request(id="fourth", prompt=tuple(range(30, 49)), sampling=Sampling(max_tokens=1)))
    assert 0 < len(disk.records) <= 7


def test_while_idle_everything_is_stored_once_the_newest_first():
    disk = FakeDisk(100)
    desk = Desk(host_pages=0, disk=disk)
    desk.run(FIRST)
    batch = desk.scheduler.idle()
    assert [(one.source.tier, one.target.tier) for one in batch.transfers] == [(Tier.DEVICE, Tier.DISK)] * 3
    desk.note(batch)
    assert desk.scheduler.idle().transfers == ()
    desk.end_transfers()
    assert desk.scheduler.idle().transfers == ()
    assert desk.scheduler.statistics().cache.stored_pages == 3


def test_a_chat_is_resumed_from_the_disk_by_another_process():
    disk = FakeDisk(100)
    desk = Desk(host_pages=0, disk=disk)
    desk.run(FIRST)
    desk.note(desk.scheduler.idle())
    desk.end_transfers()
    later = Desk(host_pages=0, disk=disk)
    later.run(FIRST)
    assert later.starts == [Start("first", 12)]
    assert later.scheduler.statistics().cache.disk_hit_tokens == 12


def test_a_disk_that_is_not_writable_is_left_alone():
    disk = FakeDisk(100)
    disk.writable = False
    desk = Desk(host_pages=0, disk=disk)
    desk.run(FIRST)
    assert desk.scheduler.idle().transfers == ()
