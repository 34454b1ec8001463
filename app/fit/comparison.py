"""The best plan on each of several machines, a line each: what to buy or rent for a model."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from app.fit.columns import columns
from app.fit.devices import fullest, taken
from app.fit.text import WIDTH, chosen_plan, price_words, runs, speed_cells
from app.fit.words import counted, formats, gib, layout
from app.text_safety import clean_line
from backend.planner.fit.rank import best
from backend.planner.fit.report import FitPlan, FitReport

_HEAD = ("hardware", "layout", "formats", "verdict", "GiB", "context", "users", "first", "token", "tok/s", "$/1M")
_ALIGN = "<<<<>>>>>>>"
_FIRST_TOKEN = _HEAD.index("first")
_LEGEND = (
    "layout: tensor x stages x replicas, e for whole experts; formats: weights/kv; GiB: what the plan takes of the "
    "fullest device; context: the largest; users: at once, with the context asked for; token: from token to token; "
    "tok/s: over all users. * is not run by this version; none: too large, or not for these devices."
)


def as_comparison(reports: Sequence[FitReport], named: Sequence[str], width: int = WIDTH) -> str:
    """A table of reports of one model.

    Arguments:
        named: the hardware of each, as the user wrote it.
    """
    ask = reports[0].ask
    rows = [
        (name if not position else "", *cells)
        for name, report in zip(map(clean_line, named), reports, strict=True)
        for position, cells in enumerate(_rows(report))
    ]
    lines = _lines(rows, width)
    asked = f"{counted(ask.users, 'user')}, context {ask.context or 0:,}; goal {ask.goal}; engine {ask.engine}"
    title = f"{clean_line(reports[0].model)}: {asked} {ask.engine_version}".rstrip()
    prices = [line for price in _prices(reports) for line in wrap(price, width)]
    return "\n".join([*wrap(title, width), "", *lines, "", *wrap(_LEGEND, width), *prices])


def _prices(reports: Sequence[FitReport]) -> list[str]:
    """Whose prices the costs are made of, a sentence each."""
    plans = [plan for report in reports for plan in _shown(report).values() if plan]
    costs = {(plan.devices[0].name, plan.cost) for plan in plans if plan.cost}
    told = {name: price_words(cost) for name, cost in sorted(costs, key=lambda one: one[0])}
    return [f"$/1M: {name}: {words}." for name, words in told.items()]


def _shown(report: FitReport) -> dict[str, FitPlan | None]:
    """The best plan of each weight format that was asked for, None where none was worth telling; else that of all."""
    if not report.ask.weights:
        plan = chosen_plan(report)
        return {plan.weights: plan}
    found = {name: [plan for plan in report.plans if plan.weights == name] for name in report.ask.weights}
    return {name: plans[best(plans) or 0] if plans else None for name, plans in found.items()}


def _rows(report: FitReport) -> list[tuple[str, ...]]:
    none = ("none", "-", *speed_cells(None))
    return [_cells(report, plan) if plan else ("-", name, *none) for name, plan in _shown(report).items()]


def _cells(report: FitReport, plan: FitPlan) -> tuple[str, ...]:
    mark = "" if runs(report, plan) else "*"
    return (f"{layout(plan)}{mark}", formats(plan), plan.verdict.kind, gib(taken(fullest(plan))), *speed_cells(plan))


def _lines(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """As many columns as there is room for; long names stand on lines of their own."""
    head, align = list(_HEAD), _ALIGN
    lines = columns(head, rows, align, width)
    if _widest(lines) > width:
        head, align = _without(head), "".join(_without(_ALIGN))
        rows = [tuple(_without(row)) for row in rows]
        lines = columns(head, rows, align, width)
    if _widest(lines) <= width:
        return lines
    figures = columns(head[1:], [row[1:] for row in rows], align[1:], width - 2)
    under = [f"{row[0]}\n  {line}" if row[0] else f"  {line}" for row, line in zip(rows, figures[1:], strict=True)]
    return [f"  {figures[0]}", *under]


def _without(cells: Sequence[str]) -> list[str]:
    """All but the first token's time, which a narrow table leaves out."""
    return [cell for position, cell in enumerate(cells) if position != _FIRST_TOKEN]


def _widest(lines: Sequence[str]) -> int:
    return max(map(len, lines))
