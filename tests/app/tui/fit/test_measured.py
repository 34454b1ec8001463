"""Predicted beside measured: every term of either side, and their sums."""

from __future__ import annotations

from app.tui.fit.measured import summary, term_rows
from app.tui.widgets.measured_table import halves
from backend.measured_rank import MeasuredRank
from backend.planner.plan import MemoryTerm, Rank

PLANNED = Rank(0, "cpu", (MemoryTerm("libraries", 300), MemoryTerm("weights", 1000), MemoryTerm("kv", 500)))
MEASURED = MeasuredRank(0, "cpu", (MemoryTerm("weights", 1100), MemoryTerm("kv", 500), MemoryTerm("new", 7)), 1500)


def test_terms_of_both_sides_stand_together_and_are_summed() -> None:
    rows = term_rows(PLANNED, MEASURED)
    assert [(row.name, row.predicted, row.measured) for row in rows] == [
        ("weights", 1000, 1100),
        ("kv", 500, 500),
        ("libraries", 300, None),
        ("new", None, 7),
        ("in all", 1800, 1607),
    ]
    assert rows[0].percent == 10
    assert rows[2].percent is None
    assert rows[3].percent is None


def test_a_rank_that_was_lost_has_only_predictions() -> None:
    assert {row.measured for row in term_rows(PLANNED, None)} == {None}


def test_one_sentence_says_how_far_off_the_whole_is() -> None:
    assert summary((PLANNED,), (MEASURED,)) == "1.6 KiB measured, 1.8 KiB predicted (-10.7%)"
    assert summary((PLANNED,), ()) == ""


def test_halves_of_a_line_compare_two_amounts() -> None:
    assert halves(10, 10, 10, 4) == "████"
    assert halves(10, 5, 10, 4) == "██▀▀"
    assert halves(5, 10, 10, 4) == "██▄▄"
    assert halves(0, 0, 10, 4) == ""
    assert halves(1, 0, 10**9, 4) == "▀"
