"""The decisions after a death, over plain data."""

from __future__ import annotations

from backend.revival import Death, RevivalPolicy, admissible, guilty, restart_delay

POLICY = RevivalPolicy(deaths=5, window=60.0, first_delay=0.5, longest_delay=30.0, suspicions=3)


def deaths(*times: float, ready: bool = True) -> list[Death]:
    return [Death(at, ready) for at in times]


def test_the_first_restart_is_immediate_and_later_ones_wait_twice_as_long_each() -> None:
    times = (0.0, 100.0, 200.0, 300.0, 400.0, 500.0)
    delays = [restart_delay(POLICY, deaths(*times[:count])) for count in range(1, 7)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert restart_delay(POLICY, deaths(*(100.0 * number for number in range(40)))) == 30.0


def test_many_deaths_in_a_short_time_end_in_failure() -> None:
    assert restart_delay(POLICY, deaths(0, 1, 2, 3)) is not None
    assert restart_delay(POLICY, deaths(0, 1, 2, 3, 4)) is None
    assert restart_delay(POLICY, deaths(0, 30, 60, 90, 120)) is not None


def test_an_engine_that_never_comes_up_fails_however_slowly_it_starts() -> None:
    assert restart_delay(POLICY, deaths(0, 100, 200, 300, 400, ready=False)) is None


def test_suspects_are_tried_one_at_a_time_beside_the_others() -> None:
    counts = {"a": 2, "b": 0, "c": 2, "d": 1}
    assert admissible(POLICY, counts, ()) == ("a", "b", "d")
    assert admissible(POLICY, counts, ("a", "b", "d")) == ()
    assert admissible(POLICY, {**counts, "a": 0}, ("a", "b", "d")) == ("c",)


def test_guilty_is_who_was_there_each_time() -> None:
    assert guilty(POLICY, {"a": 2, "b": 3, "c": 0}) == ("b",)
