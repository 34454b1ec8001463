"""Stream: frames of any size cross both ways at once, nobody waits for who does not read, broken ones are refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from pipeline_ext.stream import Stream


@pytest.fixture
def pair() -> Iterator[tuple[Stream, Stream]]:
    first, second = socket.socketpair()
    streams = Stream(first), Stream(second)
    yield streams
    for stream in streams:
        stream.close()


def test_frames_of_all_sizes_cross_in_order(pair: tuple[Stream, Stream]) -> None:
    here, there = pair
    sizes = [0, 1, 4, 65_000, 65_536, 65_537, 3_000_000, 5]
    for size in sizes:
        here.send(bytes([size % 251]) * size)
    for size in sizes:
        assert there.next(5) == bytes([size % 251]) * size


def test_parts_become_one_frame_and_may_change_after_sending(pair: tuple[Stream, Stream]) -> None:
    here, there = pair
    part = bytearray(b"x" * 2_000_000)
    here.send(b"head", memoryview(part))
    part[:] = b"y" * len(part)
    assert there.next(5) == b"head" + b"x" * 2_000_000


def test_sending_to_who_does_not_read_returns(pair: tuple[Stream, Stream]) -> None:
    here, there = pair
    for _ in range(20):
        here.send(b"z" * 1_000_000)
    assert not there.closed
    assert sum(len(there.next(5) or b"") for _ in range(20)) == 20_000_000


def test_both_sides_send_much_at_once(pair: tuple[Stream, Stream]) -> None:
    def talk(stream: Stream, found: list[int]) -> None:
        for _ in range(5):
            stream.send(b"q" * 2_000_000)
        found.extend(len(stream.next(10) or b"") for _ in range(5))

    counts: tuple[list[int], list[int]] = [], []
    threads = [threading.Thread(target=talk, args=(stream, found)) for stream, found in zip(pair, counts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert counts == ([2_000_000] * 5, [2_000_000] * 5)


def test_a_frame_longer_than_allowed_is_refused_before_it_is_received(pair: tuple[Stream, Stream]) -> None:
    here, there = pair
    there.limit = 100
    here.send(b"a" * 101)
    with pytest.raises(ValueError, match="101 bytes"):
        there.next(5)


def test_the_end_is_told_after_what_came_before_it(pair: tuple[Stream, Stream]) -> None:
    here, there = pair
    here.send(b"last")
    here.flush(1)
    here.close()
    assert there.next(5) == b"last"
    assert there.next(5) is None


def test_closing_ends_a_wait_in_another_thread(pair: tuple[Stream, Stream]) -> None:
    _, there = pair
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(there.next()))
    thread.start()
    there.close()
    thread.join(5)
    assert found == [None]


def test_waiting_has_an_end(pair: tuple[Stream, Stream]) -> None:
    with pytest.raises(TimeoutError):
        pair[1].next(0.01)


def test_more_than_is_bearable_closes_the_stream(pair: tuple[Stream, Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_ext.stream.MOST_UNSENT_BYTES", 1_000_000)
    here, _ = pair
    here.send(b"m" * 3_000_000)
    assert here.closed
