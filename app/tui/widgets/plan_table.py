"""PlanTable: the plans of a report, best first; enter takes one, keys mark and compare. Nothing is decided here."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from app.tui.fit import words
from app.tui.fit.plan_rows import table
from backend.planner.fit.report import FitPlan

_MARGIN = 2
_SCROLLBAR = 2


class PlanList(OptionList):
    """The rows, with the keys that act on the highlighted one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m,space", "mark", "Mark", id="plans.mark", tooltip="Mark this plan, to compare another one with it"),
        Binding(
            "c", "compare", "Compare", id="plans.compare", tooltip="Compare this plan with the marked (or best) one"
        ),
        Binding("u", "select", "Use plan", id="plans.use", tooltip="Start the server with this plan (also enter)"),
    ]

    def action_mark(self) -> None:
        self.post_message(PlanTable.Asked("mark", self.highlighted or 0))

    def action_compare(self) -> None:
        self.post_message(PlanTable.Asked("compare", self.highlighted or 0))


class PlanTable(Vertical):
    """A head over a list; its rows are written anew for each width."""

    DEFAULT_CSS = """
    PlanTable {
        height: 1fr;
        & > .head { height: 1; color: $text-muted; text-style: bold; padding: 0 0 0 2; text-wrap: nowrap; }
        & > PlanList { height: auto; max-height: 100%; border: none; padding: 0; background: transparent;
            overflow-x: hidden; scrollbar-size-vertical: 1; }
    }
    """

    class Asked(Message):
        """The user wants the plan of this position marked, compared or used."""

        def __init__(self, what: str, plan: int) -> None:
            super().__init__()
            self.what, self.plan = what, plan

    class Highlighted(Message):
        """Another plan is highlighted."""

        def __init__(self, plan: int) -> None:
            super().__init__()
            self.plan = plan

    def __init__(self) -> None:
        super().__init__(id="plans")
        self._plans: tuple[FitPlan, ...] = ()
        self._own = True
        self.marked: int | None = None

    def compose(self) -> ComposeResult:
        yield Static("", classes="head", markup=False)
        yield PlanList(compact=True, markup=False)

    @property
    def highlighted(self) -> int:
        return self.query_one(PlanList).highlighted or 0

    def show(self, plans: tuple[FitPlan, ...], highlighted: int = 0, own: bool = True) -> None:
        """These plans, with none marked. `own`: whether they are for our engine."""
        self._plans, self.marked, self._own = plans, None, own
        self._write(highlighted)

    def highlight(self, plan: int) -> None:
        self.query_one(PlanList).highlighted = plan

    def mark(self, plan: int | None) -> None:
        self.marked = plan
        self._write(self.highlighted)

    def on_resize(self) -> None:
        self._write(self.highlighted)

    def _write(self, highlighted: int) -> None:
        rows = self.query_one(PlanList)
        head, lines = table(self._plans, self.size.width - _MARGIN - _SCROLLBAR, self._own)
        self.query_one(".head", Static).update(head)
        with self.prevent(OptionList.OptionHighlighted):
            rows.clear_options()
            rows.add_options(
                Option(_row(plan, line, number == self.marked, self._own), id=str(number))
                for number, (plan, line) in enumerate(zip(self._plans, lines, strict=True))
            )
            rows.highlighted = highlighted if self._plans else None

    @on(OptionList.OptionHighlighted)
    def _highlight(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        self.post_message(self.Highlighted(event.option_index))

    @on(OptionList.OptionSelected)
    def _use(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Asked("use", event.option_index))


def _row(plan: FitPlan, line: str, marked: bool, own: bool) -> Content:
    """A mark, the verdict in its colour, the rest; what this version cannot run is dimmed, and says so in words."""
    verdict = words.verdict(plan)
    return Content.assemble(
        ("◆ " if marked else "  ", "bold $accent"),
        (line[: len(verdict)], f"bold {words.COLOURS[plan.verdict.kind]}"),
        (line[len(verdict) :], "" if plan.runnable or not own else "dim"),
    )
