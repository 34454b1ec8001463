"""PageMover keeps its promises whatever is slow: every route's bytes arrive, and no copy sees what came later."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from kvcache.tiers.disk import DiskTier
from kvcache.tiers.host import HostTier
from kvcache.tiers.lane import ProcessorLane
from kvcache.tiers.mover import PageMover
from kvcache.tiers.record import PageShape
from kvcache.tiers.record_folder import RecordFolder
from kvcache.tiers.staging import OUTGOING_PAGES
from kvcache.transfer import Place, Tier, Transfer, TransferDone

CPU = torch.device("cpu")
PAGES, SLOTS = 6, 4
# Long enough for any machine; only a broken mover waits for it.
LONG = 20.0


class GatedLane(ProcessorLane):
    """Copies only while the gate is open, and fails for sources that it is told of."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.fail_next = 0

    def copy(self, target: Tensor, source: Tensor, mark: None) -> None:
        self.gate.wait(LONG)
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("an injected failure")
        super().copy(target, source, mark)


class GatedFolder(RecordFolder):
    """Writes and reads only while the gate is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()

    def append(self, number: int, data: memoryview) -> None:
        self.gate.wait(LONG)
        super().append(number, data)

    def read(self, number: int, into: memoryview, offset: int) -> bool:
        self.gate.wait(LONG)
        return super().read(number, into, offset)


class Machine:
    """A mover with a small pool, host and disk, and gates in its ways."""

    def __init__(self, path: Path) -> None:
        layers = (LayerCache(Keeps.FULL, None, 2, 8, 8),) * 3
        self.layout: CacheLayout = build_layout(layers, 4)
        self.memory = PageMemory(self.layout, PAGES, torch.float32, CPU)
        self.folder = GatedFolder(path)
        shapes = tuple(PageShape.of(self.layout, group) for group in self.layout.groups)
        self.disk = DiskTier(
            self.folder, 1 << 30, secret=b"s" * 32, namespace=b"n" * 32, model="a model", shapes=shapes
        )
        self.host = HostTier(SLOTS, self.layout.page_bytes, CPU)
        self.lane = GatedLane()
        self.mover = PageMover(self.memory, CPU, self.host, self.disk, self.lane)
        self._numbers = count()

    def fill(self, page: int, value: int) -> None:
        self.memory.page(page).fill_(value)

    def value(self, tensor: Tensor) -> int:
        """The one value that all bytes have."""
        values = set(tensor.tolist())
        assert len(values) == 1, values
        return values.pop()

    def order(self, source: Place, target: Place, key: int = 0, **more: Any) -> Transfer:
        return Transfer(next(self._numbers), bytes([key]) * 32, source, target, **more)

    def run(self, *transfers: Transfer) -> list[TransferDone]:
        self.mover.begin(transfers)
        return self.all_done(len(transfers))

    def all_done(self, number: int) -> list[TransferDone]:
        done: list[TransferDone] = []
        while len(done) < number:
            more = self.mover.finished(LONG)
            assert more, f"only {len(done)} of {number} ended"
            done += more
        return sorted(done, key=lambda one: one.number)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "pages")
    yield made
    made.lane.gate.set()
    made.folder.gate.set()
    made.mover.close(LONG)


def device(index: int) -> Place:
    return Place(Tier.DEVICE, index)


def host(index: int) -> Place:
    return Place(Tier.HOST, index)


DISK = Place(Tier.DISK)


def test_a_page_goes_to_the_host_and_comes_back(machine: Machine) -> None:
    machine.fill(0, 7)
    (out,) = machine.run(machine.order(device(0), host(1)))
    assert (out.succeeded, out.bytes) == (True, machine.layout.page_bytes)
    assert out.seconds > 0
    machine.fill(0, 0)
    (back,) = machine.run(machine.order(host(1), device(3)))
    assert back.succeeded
    assert machine.value(machine.memory.page(3)) == 7


@pytest.mark.parametrize("source", [device(0), host(0)], ids=["device", "host"])
def test_a_page_goes_to_disk_and_comes_back(machine: Machine, source: Place) -> None:
    machine.fill(0, 9)
    machine.run(machine.order(device(0), host(0)))
    (out,) = machine.run(machine.order(source, DISK, key=5, owner=b"o" * 16))
    assert (out.succeeded, out.bytes) == (True, machine.layout.page_bytes)
    assert bytes([5]) * 32 in machine.disk
    (back,) = machine.run(machine.order(DISK, device(2), key=5))
    assert (back.succeeded, back.bytes) == (True, machine.layout.page_bytes)
    assert machine.value(machine.memory.page(2)) == 9


def test_an_offload_reads_what_lay_there_before_its_batch_wrote(machine: Machine) -> None:
    machine.fill(0, 1)
    machine.lane.gate.clear()
    machine.mover.begin([machine.order(device(0), host(0)), machine.order(device(0), DISK, key=1)])
    wrote = threading.Event()

    def compute() -> None:
        machine.mover.settle([0])
        machine.fill(0, 2)
        wrote.set()

    thread = threading.Thread(target=compute)
    thread.start()
    machine.mover.settle([1, 2, 3])  # pages that nothing copies do not wait
    assert not wrote.wait(0.1)
    machine.lane.gate.set()
    thread.join(LONG)
    assert wrote.is_set()
    assert all(one.succeeded for one in machine.all_done(2))
    assert machine.value(machine.host.page(0)) == 1
    machine.run(machine.order(DISK, device(5), key=1))
    assert machine.value(machine.memory.page(5)) == 1


def test_settling_never_waits_for_the_disk(machine: Machine) -> None:
    machine.fill(0, 1)
    machine.folder.gate.clear()
    machine.mover.begin([machine.order(device(0), DISK, key=1)])
    machine.mover.settle([0])
    machine.fill(0, 2)
    assert machine.mover.finished() == []
    machine.folder.gate.set()
    machine.all_done(1)
    machine.run(machine.order(DISK, device(1), key=1))
    assert machine.value(machine.memory.page(1)) == 1


def test_a_page_evicted_and_fetched_into_in_one_batch_loses_nothing(machine: Machine) -> None:
    machine.fill(0, 1)
    machine.run(machine.order(device(0), DISK, key=1), machine.order(device(0), host(1)))
    machine.fill(0, 2)
    machine.lane.gate.clear()
    orders = [
        machine.order(device(0), host(0)),
        machine.order(DISK, device(0), key=1),
        machine.order(host(0), device(1)),
        machine.order(host(0), DISK, key=2),
        machine.order(host(1), device(2)),
    ]
    machine.mover.begin(orders)
    assert machine.mover.holds_pages
    machine.lane.gate.set()
    assert all(one.succeeded for one in machine.all_done(5))
    assert [machine.value(machine.memory.page(page)) for page in (0, 1, 2)] == [1, 2, 1]
    machine.run(machine.order(DISK, device(4), key=2))
    assert machine.value(machine.memory.page(4)) == 2


def test_nothing_is_done_before_it_is(machine: Machine) -> None:
    machine.lane.gate.clear()
    machine.mover.begin([machine.order(device(0), host(0))])
    assert machine.mover.finished(0.0) == []
    assert machine.mover.finished(0.01) == []
    machine.lane.gate.set()
    machine.all_done(1)
    assert machine.mover.finished(LONG) == []  # nothing runs: nothing to wait for
    assert not machine.mover.holds_pages


def test_fetches_come_before_stores_that_wait(machine: Machine) -> None:
    machine.run(machine.order(device(0), DISK, key=200))
    machine.folder.gate.clear()
    stores = [machine.order(device(0), DISK, key=key) for key in range(1, 49)]
    machine.mover.begin(stores)
    fetch = machine.order(DISK, device(1), key=200)
    machine.mover.begin([fetch])
    machine.folder.gate.set()
    numbers: list[int] = []
    while len(numbers) <= len(stores):
        numbers += [one.number for one in machine.mover.finished(LONG)]
    assert sorted(numbers) == sorted(one.number for one in (*stores, fetch))
    assert numbers[-1] != fetch.number


def test_a_disk_far_behind_declines_stores_instead_of_holding_compute_back(machine: Machine) -> None:
    machine.folder.gate.clear()
    orders = [machine.order(device(0), DISK, key=key) for key in range(OUTGOING_PAGES + 3)]
    machine.mover.begin(orders)
    machine.mover.settle([0])
    declined = machine.all_done(3)
    assert [one.succeeded for one in declined] == [False] * 3
    machine.folder.gate.set()
    assert all(one.succeeded for one in machine.all_done(OUTGOING_PAGES))
    (again,) = machine.run(machine.order(device(0), DISK, key=250))
    assert again.succeeded


def test_a_missing_or_broken_record_is_a_failed_transfer_that_leaves_the_page_alone(machine: Machine) -> None:
    machine.fill(3, 4)
    machine.run(machine.order(device(0), DISK, key=1))
    path = next(path for path in machine.folder.path.rglob("01" * 32))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    broken, missing = machine.run(machine.order(DISK, device(3), key=1), machine.order(DISK, device(3), key=9))
    assert [(one.succeeded, one.bytes) for one in (broken, missing)] == [(False, 0)] * 2
    assert machine.value(machine.memory.page(3)) == 4
    assert not machine.mover.holds_pages


def test_what_goes_wrong_in_a_thread_fails_its_transfer_only(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.lane.fail_next = 2
    one, two, three = machine.run(
        machine.order(device(0), host(0)), machine.order(device(0), DISK, key=1), machine.order(device(0), host(1))
    )
    assert [one.succeeded, two.succeeded, three.succeeded] == [False, False, True]
    (bad,) = machine.run(machine.order(device(0), DISK, key=1, owner=b"short"))
    assert not bad.succeeded
    assert "an injected failure" in caplog.text
    assert "an owner" in caplog.text
    (good,) = machine.run(machine.order(device(0), DISK, key=1))
    assert good.succeeded


def test_a_route_without_its_tier_fails(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "pages")
    machine.mover.close(LONG)
    bare = PageMover(machine.memory, CPU, None, None)
    orders = [machine.order(device(0), host(0)), machine.order(DISK, device(0)), machine.order(host(0), DISK)]
    bare.begin(orders)
    assert [one.succeeded for one in bare.finished(LONG)] == [False] * 3
    bare.settle([0])
    bare.close()


def test_closing_ends_what_runs_and_lets_another_write(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "pages")
    machine.mover.begin([machine.order(device(0), DISK, key=key) for key in range(3)])
    machine.mover.close(LONG)
    after = Machine(machine.folder.path)
    assert after.disk.writable
    assert after.disk.statistics().pages == 3
    after.mover.close(LONG)


@pytest.mark.parametrize("seed", range(8))
def test_random_orders_move_what_a_model_of_them_says(machine: Machine, seed: int) -> None:
    """Batches of random transfers and writes, against a plain model that carries each order out at once."""
    choose = random.Random(seed)
    pages, slots, records = dict.fromkeys(range(PAGES), 0), dict.fromkeys(range(SLOTS), 0), dict[int, int]()
    for page in pages:
        machine.fill(page, 0)
    machine.run(*(machine.order(device(0), host(slot)) for slot in slots))
    for step in range(1, 60):
        orders: list[Transfer] = []
        incoming: set[int] = set()
        for _ in range(choose.randrange(4)):
            page, slot = choose.choice([one for one in pages if one not in incoming]), choose.randrange(SLOTS)
            match choose.randrange(4):
                case 0:
                    orders.append(machine.order(device(page), host(slot)))
                    slots[slot] = pages[page]
                case 1:
                    orders.append(machine.order(host(slot), device(page)))
                    pages[page] = slots[slot]
                    incoming.add(page)
                case 2:
                    records[step] = pages[page]
                    orders.append(machine.order(device(page), DISK, key=step))
                    break
                case 3 if records:
                    key = choose.choice(list(records))
                    orders.append(machine.order(DISK, device(page), key=key))
                    pages[page] = records[key]
                    incoming.add(page)
        machine.mover.begin(orders)
        written = choose.choice([one for one in pages if one not in incoming])
        machine.mover.settle([written])
        machine.fill(written, step)
        pages[written] = step
        # A fetched page, and a record, may be named again only once they are there.
        assert all(one.succeeded for one in machine.all_done(len(orders)))
    assert {page: machine.value(machine.memory.page(page)) for page in pages} == pages
    assert {slot: machine.value(machine.host.page(slot)) for slot in slots} == slots
