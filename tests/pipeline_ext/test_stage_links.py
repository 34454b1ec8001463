"""StageLinks: neighbours meet epoch by epoch, strangers and fuzzers do no harm, a frozen one holds nobody up."""

from __future__ import annotations

import queue
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline_ext.dial import say
from pipeline_ext.hello import LinkHello
from pipeline_ext.listening import bound_unix
from pipeline_ext.stage_links import LinkBroken, LinkEvent, LinkFrame, LinkStands, StageLinks, chosen_place
from pipeline_ext.stream import Stream
from tests.pipeline_ext.lines import unix_connect

SECRET = b"another secret of thirty-two byte"


@dataclass
class Side:
    """One stage's links, and what they have told."""

    links: StageLinks
    events: queue.SimpleQueue[LinkEvent]
    place: str = ""
    told: list[LinkEvent] = field(default_factory=list)

    def next(self, epoch: int = 0) -> LinkEvent:
        """The next event of this epoch: who has not been told of it may see the last one's link break."""
        while True:
            event = self.events.get(timeout=10.0)
            self.told.append(event)
            if event.epoch == epoch:
                return event

    def quiet(self) -> bool:
        try:
            self.told.append(self.events.get(timeout=0.1))
        except queue.Empty:
            return True
        return False


def side(stage: int, folder: Path, listens: bool = False) -> Side:
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    links = StageLinks(stage, SECRET, None, folder, events.put)
    place = links.listen(bound_unix(folder / f"link-{stage}.sock"), None) if listens else ""
    return Side(links, events, place)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    first, second = side(0, tmp_path), side(1, tmp_path, listens=True)
    yield first, second
    first.links.close()
    second.links.close()


def stand(first: Side, second: Side, epoch: int) -> None:
    second.links.join(epoch, "")
    first.links.join(epoch, second.place)
    assert first.next(epoch) == LinkStands(epoch, True)
    assert second.next(epoch) == LinkStands(epoch, False)


def test_frames_arrive_in_order_once_the_link_stands(pair: tuple[Side, Side]) -> None:
    first, second = pair
    stand(first, second, 0)
    for number in range(50):
        first.links.send(0, b"head", bytes([number]) * 10_000)
    for number in range(50):
        assert second.next() == LinkFrame(0, b"head" + bytes([number]) * 10_000)


def test_who_comes_before_its_epoch_waits_for_it(pair: tuple[Side, Side]) -> None:
    first, second = pair
    second.links.join(0, "")
    first.links.join(1, second.place)
    assert first.quiet()
    second.links.join(1, "")
    assert first.next(1) == LinkStands(1, True)
    assert second.next(1) == LinkStands(1, False)


def test_a_new_epoch_closes_the_links_of_the_last(pair: tuple[Side, Side]) -> None:
    first, second = pair
    stand(first, second, 0)
    stand(first, second, 1)
    first.links.send(0, b"of an epoch that is over")
    first.links.send(1, b"of this one")
    assert second.next(1) == LinkFrame(1, b"of this one")
    assert first.quiet()
    assert second.quiet()


def test_the_end_of_a_neighbour_breaks_the_link_on_this_side(pair: tuple[Side, Side]) -> None:
    first, second = pair
    stand(first, second, 0)
    second.links.close()
    broken = first.next()
    assert isinstance(broken, LinkBroken)
    assert broken.forward


def test_a_neighbour_that_reads_nothing_holds_nobody_up(pair: tuple[Side, Side], tmp_path: Path) -> None:
    first, _ = pair
    with bound_unix(tmp_path / "frozen.sock") as listener:
        first.links.join(0, str(tmp_path / "frozen.sock"))
        peer, _ = listener.accept()
        frozen = Stream(peer)
        assert frozen.next(5) is not None
        frozen.send(b"\x92\xa7Welcome\x00")
        assert first.next() == LinkStands(0, True)
        for _ in range(30):
            first.links.send(0, b"x" * 1_000_000)
        first.links.join(1, "")
        frozen.close()


def test_strangers_get_no_link_and_a_second_one_does_not_take_over(pair: tuple[Side, Side]) -> None:
    first, second = pair
    stand(first, second, 3)
    for hello in (LinkHello(3, 0, b"wrong"), LinkHello(3, 0, SECRET), LinkHello(2, 0, SECRET), LinkHello(3, 5, SECRET)):
        stranger = Stream(unix_connect(second.place)())
        say(stranger, hello)
        assert stranger.next(5) is None
        stranger.close()
    assert second.links.strangers == 4
    first.links.send(3, b"still here")
    assert second.next(3) == LinkFrame(3, b"still here")


def test_a_fuzzed_listener_goes_on(pair: tuple[Side, Side]) -> None:
    first, second = pair
    source = random.Random(11)
    for number in range(60):
        with unix_connect(second.place)() as peer:
            length = source.choice([0, 7, 2**32 - 1, source.randrange(1500)])
            peer.sendall(length.to_bytes(4, "big") + source.randbytes(source.randrange(1500)))
            if number % 2:
                peer.shutdown(socket.SHUT_WR)
    stand(first, second, 0)


def test_the_nearest_place_is_dialled(tmp_path: Path) -> None:
    places = f"{tmp_path}/link.sock 10.0.0.7:4000"
    assert chosen_place(places, tmp_path) == f"{tmp_path}/link.sock"
    assert chosen_place(places, tmp_path / "other") == "10.0.0.7:4000"
    assert chosen_place(places, None) == "10.0.0.7:4000"
