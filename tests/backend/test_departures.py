"""Departures: who is told to end, when and why."""

from __future__ import annotations

from backend.departures import Departures


def test_deadlines_come_in_their_own_order_each_once():
    departures = Departures()
    for number, deadline in ((0, 3.0), (1, 1.0), (2, 2.0), (3, 9.0)):
        departures.expect(number, deadline)
    assert departures.due(0.9) == []
    assert departures.due(2.0) == [(1, "deadline"), (2, "deadline")]
    assert departures.due(5.0) == [(0, "deadline")]
    assert departures.due(5.0) == []


def test_who_is_cancelled_goes_before_whose_time_is_over():
    departures = Departures()
    departures.expect(0, 1.0)
    departures.cancel(1)
    departures.cancel(0)
    assert departures.due(1.0) == [(1, "cancelled"), (0, "cancelled"), (0, "deadline")]
    assert departures.due(1.0) == []
