"""What a cable does to frames: order, delay, bandwidth, and no room."""

from __future__ import annotations

import pytest

from tests.hosts.lane import LEAST_ROOM_BYTES, Lane


def test_frames_come_out_in_order_and_not_before_their_time() -> None:
    lane = Lane(delay=0.02)
    for number in range(3):
        assert lane.put(number / 1000, bytes([number]))
    assert lane.due(0.0199) == []
    assert lane.next_due == pytest.approx(0.02)
    assert lane.due(0.0211) == [b"\0", b"\1"]
    assert lane.due(1.0) == [b"\2"]
    assert lane.next_due is None


def test_a_bandwidth_makes_frames_wait_for_each_other_and_drops_what_has_no_room() -> None:
    lane = Lane(bandwidth=1000.0)
    assert lane.put(0.0, bytes(500))
    assert lane.put(0.0, bytes(500))
    assert lane.due(0.6) == [bytes(500)]
    assert lane.due(1.1) == [bytes(500)]
    assert lane.put(5.0, bytes(100))
    assert not lane.put(5.0, bytes(LEAST_ROOM_BYTES))


def test_a_faster_lane_does_not_let_frames_overtake() -> None:
    lane = Lane(delay=1.0)
    lane.put(0.0, b"first")
    lane.delay = 0.0
    lane.put(0.1, b"second")
    assert lane.due(0.5) == []
    assert lane.due(1.0) == [b"first", b"second"]
