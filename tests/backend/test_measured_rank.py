"""What is told of ranks that took more or less memory than planned."""

from __future__ import annotations

from backend.measured_rank import MeasuredRank, differences
from backend.planner.plan import MemoryTerm, Rank

MIB = 1 << 20


def terms(**mebibytes: int) -> tuple[MemoryTerm, ...]:
    return tuple(MemoryTerm(name, size * MIB) for name, size in mebibytes.items())


PLANNED = (Rank(0, "cpu", terms(weights=100, kv=500, libraries=400)),)


def test_within_a_tenth_nothing_is_said() -> None:
    assert differences(PLANNED, [MeasuredRank(0, "cpu", terms(weights=190, kv=500, libraries=400), 0)]) == []


def test_more_and_less_name_the_term_that_differs_most() -> None:
    more = MeasuredRank(0, "cpu", terms(weights=105, kv=500, libraries=540), 0)
    assert differences(PLANNED, [more]) == [
        "Memory of rank 0 (cpu): 1145 MiB measured, 1000 MiB planned; "
        "most of it in libraries: 540 MiB, planned 400 MiB."
    ]
    less = MeasuredRank(0, "cpu", terms(weights=100, kv=250, libraries=400), 0)
    (line,) = differences(PLANNED, [less])
    assert "kv: 250 MiB, planned 500 MiB" in line


def test_a_term_that_was_not_planned_is_named() -> None:
    (line,) = differences(PLANNED, [MeasuredRank(0, "cpu", terms(weights=100, communication=2000), 0)])
    assert "communication: 2000 MiB, planned 0 MiB" in line


def test_a_difference_of_a_small_model_is_no_news() -> None:
    tiny = (Rank(0, "cpu", terms(weights=1, libraries=9)),)
    assert differences(tiny, [MeasuredRank(0, "cpu", terms(weights=1, libraries=39), 0)]) == []


def test_a_plan_without_figures_has_none_to_compare() -> None:
    assert differences((Rank(0, "cpu", ()),), [MeasuredRank(0, "cpu", terms(weights=1000), 0)]) == []
