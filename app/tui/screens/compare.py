"""CompareScreen: two plans side by side, with what differs and their memory. The figures are `fit.comparison`'s."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Static

from app.tui.fit import words
from app.tui.fit.comparison import Row, compared
from app.tui.widgets.memory_bars import MemoryBars
from backend.planner.fit.report import FitPlan, FitReport

_NAME_CELLS, _VALUE_CELLS = 18, 20


class CompareScreen(Screen[int | None]):
    """Dismissed with the position of the plan to use; None when left."""

    DEFAULT_CSS = """
    CompareScreen {
        & > .head { height: 1; padding: 0 1; background: $panel; text-style: bold; text-wrap: nowrap; }
        & > VerticalScroll { height: 1fr; padding: 0 1; }
        VerticalScroll > Static { height: auto; text-wrap: nowrap; }
        .title { text-style: bold; margin: 1 0 0 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "Back", id="compare.back", tooltip="Back to the plans"),
        Binding("a", "use(0)", "Use A", id="compare.first", tooltip="Start the server with plan A"),
        Binding("b", "use(1)", "Use B", id="compare.second", tooltip="Start the server with plan B"),
        Binding("x", "swap", "Swap", id="compare.swap", tooltip="Change sides"),
    ]
    HELP = """
# Two plans

A is the marked plan, or the best one; B was highlighted. The last column says how B differs from A: in memory,
as a factor, or in percent. `a` and `b` start the server with a plan, `x` changes sides.
"""

    def __init__(self, report: FitReport, first: int, second: int) -> None:
        super().__init__()
        self._report = report
        self._pair = (first, second)

    def compose(self) -> ComposeResult:
        yield Static("", classes="head", markup=False)
        with VerticalScroll():
            yield Static("", classes="rows", markup=False)
            for name in ("first", "second"):
                yield Static("", classes="title", id=f"title-{name}", markup=False)
                yield MemoryBars(together=True, id=f"bars-{name}")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self._show()

    def _show(self) -> None:
        plans = [self._report.plans[number] for number in self._pair]
        heads = [f"{side}: plan {number + 1}" for side, number in zip("AB", self._pair, strict=True)]
        self.query_one(".head", Static).update(
            f" {'':<{_NAME_CELLS}}{heads[0]:<{_VALUE_CELLS}}{heads[1]:<{_VALUE_CELLS}}B to A"
        )
        rows = compared(plans[0], plans[1])
        self.query_one(".rows", Static).update(Content("\n").join(_line(row) for row in rows))
        for name, head, plan in zip(("first", "second"), heads, plans, strict=True):
            self.query_one(f"#title-{name}", Static).update(f"{head}, {_name(plan)}")
            self.query_one(f"#bars-{name}", MemoryBars).show(plan, True)

    def action_swap(self) -> None:
        self._pair = (self._pair[1], self._pair[0])
        self._show()

    def action_use(self, side: int) -> None:
        self.dismiss(self._pair[side])


def _line(row: Row) -> Content:
    """What differs is marked with a sign as well as by colour."""
    mark = "≠ " if row.difference else "  "
    return Content.assemble(
        (mark, "$accent"),
        (f"{row.name:<{_NAME_CELLS - 1}}", "$text-muted"),
        (f"{row.left:<{_VALUE_CELLS}}", ""),
        (f"{row.right:<{_VALUE_CELLS}}", "bold" if row.difference else ""),
        (row.difference if row.difference != "differs" else "", "$text-accent"),
    )


def _name(plan: FitPlan) -> str:
    return f"{words.layout(plan)}, weights {plan.weights}, KV {plan.kv_format}: {words.verdict(plan)}"
