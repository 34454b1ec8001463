"""LostKeys: what comes back is known once, and memory is bounded."""

from __future__ import annotations

from kvcache.lost_keys import LostKeys


def test_a_key_that_comes_back_is_known_once() -> None:
    lost = LostKeys(4)
    lost.add(b"a")
    assert lost.take(b"a")
    assert not lost.take(b"a")
    assert not lost.take(b"b")


def test_the_longest_lost_are_forgotten_first() -> None:
    lost = LostKeys(2)
    for key in (b"a", b"b", b"a", b"c"):
        lost.add(key)
    assert len(lost) == 2
    assert [lost.take(key) for key in (b"a", b"b", b"c")] == [True, False, True]
