"""Plans as rows of a table that never overflows: where it is too narrow, the least important columns go. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.fit.words import rate, seconds
from app.tui.fit import words
from backend.planner.fit.report import FitPlan

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `weight`: the least important goes first where there is no room."""

    head: str
    cell: Callable[[FitPlan], str]
    weight: int
    right: bool = True


def _speed(write: Callable[[FitPlan], str]) -> Callable[[FitPlan], str]:
    return lambda plan: write(plan) if plan.speed is not None else words.NONE


COLUMNS: tuple[Column, ...] = (
    Column("verdict", words.verdict, 11, right=False),
    Column("layout", words.layout, 10, right=False),
    Column("weights", lambda plan: plan.weights, 8, right=False),
    Column("KV", lambda plan: plan.kv_format, 7, right=False),
    Column("context", lambda plan: words.tokens(plan.largest_context) if plan.largest_context else words.NONE, 9),
    Column("users", lambda plan: f"{plan.concurrency:,}" if plan.concurrency else words.NONE, 3),
    Column("first", _speed(lambda plan: seconds(plan.speed.first_token.likely)), 2),  # type: ignore[union-attr]
    Column("token", _speed(lambda plan: seconds(plan.speed.token.likely)), 6),  # type: ignore[union-attr]
    Column("tok/s", _speed(lambda plan: rate(plan.speed.throughput.likely)), 5),  # type: ignore[union-attr]
    Column("$/1M", lambda plan: words.dollars(plan.cost.per_million.likely) if plan.cost else words.NONE, 4),
    Column("runs", lambda plan: "yes" if plan.runnable else "no", 4, right=False),
)


def table(plans: Sequence[FitPlan], width: int, own: bool = True) -> tuple[str, list[str]]:
    """The head and a row for each plan, each at most `width` cells. `own`: whether our engine is planned for."""
    columns = [column for column in COLUMNS if own or column.head != "runs"]
    if not any(plan.cost for plan in plans):
        columns = [column for column in columns if column.head != "$/1M"]
    cells = {column.head: [column.cell(plan) for plan in plans] for column in columns}
    wide = {column.head: max([len(column.head), *map(len, cells[column.head])]) for column in columns}
    gap = GAP
    while len(columns) > 2 and _total(columns, wide, gap) > width:
        if gap == GAP:
            gap = " "
            continue
        columns.remove(min(columns, key=lambda column: column.weight))
    head = gap.join(_cell(column.head, wide[column.head], column.right) for column in columns)
    rows = [
        gap.join(_cell(cells[column.head][number], wide[column.head], column.right) for column in columns)
        for number in range(len(plans))
    ]
    return head, rows


def _total(columns: Sequence[Column], wide: dict[str, int], gap: str) -> int:
    return sum(wide[column.head] for column in columns) + len(gap) * (len(columns) - 1)


def _cell(text: str, width: int, right: bool) -> str:
    return f"{text:>{width}}" if right else f"{text:<{width}}"
