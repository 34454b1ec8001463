"""MeasuredTable: predicted and measured memory of each rank, with bars to compare them by eye."""

from __future__ import annotations

from textual.content import Content

from app.plan_view import EnginePlan
from app.text_safety import clean_line
from app.tui.fit import words
from app.tui.fit.measured import TermRow, term_rows
from app.tui.fit.memory_terms import look
from app.tui.widgets.drawn import Drawn
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Rank

_NAME, _FIGURE, _CHANGE = 16, 11, 8
_LEAST_BAR = 10


class MeasuredTable(Drawn):
    """A block for each rank of each engine."""

    def __init__(self) -> None:
        super().__init__()
        self._plans: tuple[EnginePlan, ...] | None = None

    def show(self, plans: tuple[EnginePlan, ...]) -> None:
        self._plans = plans
        self.redraw()

    def lines(self, width: int) -> list[Content]:
        if self._plans is None:
            return [Content("asking the server...")]
        lines = [line for plan in self._plans for line in _engine(plan, width)]
        return lines or [Content("No engine serves at the moment.")]


def _engine(engine: EnginePlan, width: int) -> list[Content]:
    plan = engine.plan
    formats = f"weights {plan.weight_format}, KV {plan.kv_format}, context {words.tokens(plan.max_context)}"
    lines = [Content.assemble((clean_line(engine.model, 120), "bold"), (f"  {formats}", "$text-muted"))]
    measured = {each.rank: each for each in engine.measured}
    for rank in plan.ranks:
        lines += ["", *_rank(rank, measured.get(rank.rank), width)]  # type: ignore[list-item]
    return [line if isinstance(line, Content) else Content(line) for line in (*lines, "")]


def _rank(planned: Rank, measured: MeasuredRank | None, width: int) -> list[Content]:
    rows = term_rows(planned, measured)
    largest = max(max(row.predicted or 0, row.measured or 0) for row in rows[:-1])
    bar = width - _NAME - 2 * _FIGURE - _CHANGE - 2
    name = f"rank {planned.rank}, {planned.device}"
    head = f"{name:<{_NAME}}{'predicted':>{_FIGURE}}{'measured':>{_FIGURE}}{'':>{_CHANGE}}"
    bars = "  upper: predicted, lower: measured" if bar >= 36 else ""
    lines = [Content.assemble((head, "bold"), (bars, "$text-muted"))]
    for row in rows:
        lines += _row(row, largest if row is not rows[-1] else 0, bar)
    return lines + _resident(measured)


def _row(row: TermRow, largest: int, bar: int) -> list[Content]:
    """The figures, and where there is room a bar, of which each half of a cell's height is one side's."""
    _, colour, name = look(row.name)
    percent = row.percent
    change = "" if percent is None else f"{percent:+.1f}%"
    style = "bold $text-warning" if percent is not None and abs(percent) > 10 else ""
    figures = Content.assemble(
        (f"{name:<{_NAME}}", "bold" if not largest else ""),
        f"{_amount(row.predicted):>{_FIGURE}}{_amount(row.measured):>{_FIGURE}}",
        (f"{change:>{_CHANGE}}", style),
    )
    if bar < _LEAST_BAR or not largest:
        return [figures]
    return [Content.assemble(figures, "  ", (halves(row.predicted or 0, row.measured or 0, largest, bar), colour))]


def halves(upper: int, lower: int, largest: int, cells: int) -> str:
    """Two bars in one line: half blocks above and below."""
    first, second = (min(cells, max(1 if amount else 0, round(cells * amount / largest))) for amount in (upper, lower))
    both, more = min(first, second), abs(first - second)
    return "█" * both + ("▀" if first > second else "▄") * more


def _resident(measured: MeasuredRank | None) -> list[Content]:
    if measured is None:
        return [Content.styled("not measured: the engine has just been lost", "$text-warning")]
    parts = [f"resident now {words.memory(measured.resident)}"]
    if measured.proportional is not None and measured.proportional != measured.resident:
        parts[0] += f", {words.memory(measured.proportional)} with shared memory divided"
    if measured.untouched:
        parts.append(f"{words.memory(measured.untouched)} of pages were never written, and take nothing yet")
    return [Content.styled(part, "$text-muted") for part in parts]


def _amount(count: int | None) -> str:
    return words.NONE if count is None else words.memory(count)
