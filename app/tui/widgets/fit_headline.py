"""FitHeadline: the answer in one line, above everything else."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from app.text_safety import clean_line
from app.tui.fit import words
from backend.planner.fit.report import FitReport


class FitHeadline(Static):
    """The verdict, of which model on what; the rest is cut off where the terminal is narrow."""

    DEFAULT_CSS = """
    FitHeadline { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__("", id="headline", markup=False)

    def say(self, text: str) -> None:
        self.update(clean_line(text, 300))

    def show(self, report: FitReport) -> None:
        plan = report.plans[report.best or 0]
        ask = report.ask
        count = sum(each.verdict.fits for each in report.plans)
        users = "1 user" if ask.users == 1 else f"{ask.users:,} users"
        self.update(
            Content.assemble(
                (words.told(plan), f"bold {words.COLOURS[plan.verdict.kind]}"),
                (f" {clean_line(report.model, 60)}", "bold"),
                f" on {clean_line(report.hardware, 60)}, {words.tokens(ask.context or 0)} context, {users}",
                (f" · {count} of {len(report.plans)} plans fit", "$text-muted"),
            )
        )
