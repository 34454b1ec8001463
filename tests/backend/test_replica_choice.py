"""Which replica a request goes to."""

from __future__ import annotations

import pytest

from backend.replica_choice import PrefixHomes, choose


@pytest.mark.parametrize(
    ("running", "home", "expected"),
    [
        ([2, 1, 3], None, 1),
        ([1, 1, 1], 2, 2),
        ([1, 0, 1], 2, 1),  # a known prompt is no reason to wait
        ([None, 5], 0, 1),
        ([None, None], 0, None),
        ([], None, None),
    ],
)
def test_the_least_busy_of_those_that_are_ready(
    running: list[int | None], home: int | None, expected: int | None
) -> None:
    assert choose(running, home) == expected


def test_the_longest_known_beginning_decides_where_a_prompt_is_at_home() -> None:
    homes = PrefixHomes()
    homes.note(b"", range(100), 0)
    homes.note(b"", [*range(40), *range(500, 600)], 1)
    assert homes.find(b"", [*range(64), 7, 7]) == 0
    assert homes.find(b"", [*range(40), *range(500, 530)]) == 1
    assert homes.find(b"", range(31)) is None
    assert homes.find(b"another client's", range(100)) is None


def test_only_so_many_beginnings_are_remembered() -> None:
    homes = PrefixHomes()
    for start in range(9000):
        homes.note(b"", range(start, start + 32), 0)
    assert homes.find(b"", range(32)) is None
    assert homes.find(b"", range(8999, 9031)) == 0
