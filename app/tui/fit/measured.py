"""A rank's predicted and measured memory term by term, as rows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.tui.fit import words
from app.tui.fit.memory_terms import ordered
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Rank


@dataclass(frozen=True, slots=True)
class TermRow:
    """One term in bytes; None where it was not predicted, or not measured."""

    name: str
    predicted: int | None
    measured: int | None

    @property
    def percent(self) -> float | None:
        """How much more was measured than predicted."""
        if not self.predicted or self.measured is None:
            return None
        return 100 * (self.measured - self.predicted) / self.predicted


def term_rows(planned: Rank, measured: MeasuredRank | None) -> list[TermRow]:
    """Every term of either side, and their sums last."""
    predicted = {term.name: term.bytes for term in planned.memory}
    found = {term.name: term.bytes for term in measured.terms} if measured else {}
    names = ordered(dict.fromkeys((*predicted, *found)), key=str)
    rows = [TermRow(name, predicted.get(name), found.get(name)) for name in names]
    total = TermRow("in all", sum(predicted.values()), measured.total if measured else None)
    return [*rows, total]


def summary(planned: Sequence[Rank], measured: Sequence[MeasuredRank]) -> str:
    """All ranks' sums in one line; empty where nothing was measured."""
    if not measured:
        return ""
    predicted = sum(term.bytes for rank in planned for term in rank.memory)
    found = TermRow("", predicted, sum(rank.total for rank in measured))
    change = "" if found.percent is None else f" ({found.percent:+.1f}%)"
    return f"{words.memory(found.measured or 0)} measured, {words.memory(predicted)} predicted{change}"
