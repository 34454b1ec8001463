"""PlanDetails: one plan explained: its verdict, memory by term, ways out, figures with their ranges, and reasons."""

from __future__ import annotations

import shlex

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from app.fit.words import BOUNDS, JOINING, over_machines, rate, seconds
from app.text_safety import clean, clean_line
from app.tui.fit import words
from app.tui.widgets.memory_bars import MemoryBars
from backend.planner.fit.report import FitPlan, FitReport, WayOut


class WaysOut(OptionList):
    """What to change where nothing fits; enter makes the change."""


class PlanDetails(VerticalScroll):
    """Of the highlighted plan; up and down scroll it."""

    DEFAULT_CSS = """
    PlanDetails {
        height: 1fr;
        padding: 0 1;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        &:focus { background: $panel; }
        & > Static { height: auto; }
        & > .ways { color: $text-accent; display: none; }
        & > WaysOut { height: auto; border: none; padding: 0; margin: 0 0 1 0; background: transparent; display: none; }
        & > .verdict, & > MemoryBars { margin: 0 0 1 0; }
    }
    """

    class Applied(Message):
        """The user wants this change."""

        def __init__(self, way: WayOut) -> None:
            super().__init__()
            self.way = way

    def __init__(self) -> None:
        super().__init__(id="details")
        self._ways: tuple[WayOut, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static("", classes="verdict", markup=False)
        yield Static("Ways out (enter makes the change):", classes="ways", markup=False)
        yield WaysOut(compact=True, markup=False)
        yield MemoryBars()
        yield Static("", classes="figures", markup=False)

    def show(self, report: FitReport, number: int, together: bool) -> None:
        """The plan of this position. `together`: whether devices that are alike share a bar."""
        plan = report.plans[number]
        self.query_one(".verdict", Static).update(_verdict(plan, report.ask.engine == "shardwise"))
        self.query_one(MemoryBars).show(plan, together)
        self.query_one(".figures", Static).update(_figures(report, plan))
        self._show_ways(report.ways_out if plan.verdict.kind in ("fragile", "too large") else ())
        self.scroll_home(animate=False)

    def say(self, text: str) -> None:
        """A sentence in place of a plan."""
        self.query_one(".verdict", Static).update(clean(text))
        self.query_one(MemoryBars).show(None, False)
        self.query_one(".figures", Static).update("")
        self._show_ways(())

    def _show_ways(self, ways: tuple[WayOut, ...]) -> None:
        self.query_one(".ways").display = bool(ways)
        options = self.query_one(WaysOut)
        options.display = bool(ways)
        if ways != self._ways:
            self._ways = ways
            options.clear_options()
            options.add_options(Option(_way(way), id=str(number)) for number, way in enumerate(ways))
            options.highlighted = 0 if ways else None

    @on(OptionList.OptionSelected)
    def _apply(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Applied(self._ways[event.option_index]))


def _way(way: WayOut) -> Content:
    return Content.assemble(
        ("• ", "$accent"),
        (clean_line(way.what, 200), "bold"),
        (f" → {clean_line(way.gives, 200)}" if way.gives else ""),
    )


def _verdict(plan: FitPlan, own: bool) -> Content:
    lines = Content.assemble(
        (words.told(plan), f"bold {words.COLOURS[plan.verdict.kind]}"), f"  {clean(plan.verdict.sentence)}"
    )
    if plan.runnable:
        return lines
    if not own:
        return Content.assemble(lines, (f"\n{clean(plan.blocked)}", "$text-muted"))
    return Content.assemble(lines, (f"\nThis version does not run it: {clean(plan.blocked)}", "$text-warning"))


def _figures(report: FitReport, plan: FitPlan) -> Content:
    rows = [*_speed_rows(plan), *_cost_rows(plan)]
    options = " ".join(shlex.quote(option) for option in plan.options)
    serve = "vllm serve" if report.ask.engine == "vllm" else "shardwise serve"
    lines = [f"{name:<12} {value}" for name, value in rows]
    lines += ["", *(f"• {clean(reason)}" for reason in plan.reasons if reason != plan.verdict.sentence)]
    lines += [f"• {clean(note)}" for note in report.notes]
    if plan.options or plan.runnable:
        joining = [JOINING, ""] if plan.runnable and over_machines(plan) else []
        lines += ["", *joining, f"{serve} {clean_line(report.model, 200)} {options}".rstrip()]
    return Content("\n".join(lines))


def _speed_rows(plan: FitPlan) -> list[tuple[str, str]]:
    context = f"{plan.largest_context:,} positions for one user; {plan.kv_tokens:,} in all pools"
    if plan.speed is None:
        return [("context", context)] if plan.largest_context else []
    speed = plan.speed
    sent = f"; each rank sends {words.memory(speed.communication)} a token" if speed.communication else ""
    return [
        ("context", context),
        ("first token", f"{words.spread(speed.first_token)}, with nobody waiting"),
        ("token", f"{words.spread(speed.token)}; {seconds(speed.alone.likely)} for a user alone"),
        ("tokens/s", f"{words.spread(speed.throughput, rate)} with {speed.sequences:,} at once"),
        ("bound", BOUNDS[speed.bound] + sent),
    ]


def _cost_rows(plan: FitPlan) -> list[tuple[str, str]]:
    if plan.cost is None:
        return []
    cost = plan.cost
    of = ", ".join(clean_line(part, 80) for part in (cost.source, cost.dated) if part)
    return [
        (
            "$/1M tokens",
            f"{words.spread(cost.per_million, words.dollars)} at {words.dollars(cost.price)} a GPU and hour"
            + (f" ({of})" if of else ""),
        )
    ]
