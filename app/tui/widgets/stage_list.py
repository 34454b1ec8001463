"""StageList: the stages of a start, from the download to the warm-up, with their progress and times."""

from __future__ import annotations

from collections.abc import Iterable

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import ProgressBar, Static

from app.tui import format as figures
from backend.engine_client import StageTime

ORDER = ("download", "prepare", "read", "load", "pack", "warm up")


class StageRow(Horizontal):
    """One stage: a mark, its name, a bar where it can be counted, its time."""

    DEFAULT_CSS = """
    StageRow {
        height: 1;
        & > .mark { width: 3; }
        & > .name { width: 11; }
        & > ProgressBar { width: 1fr; & > Bar { width: 1fr; } }
        & > .bytes { width: 19; text-align: right; color: $text-muted; }
        & > .time { width: 14; text-align: right; }
        &.-waiting { color: $text-disabled; }
        &.-running > .name { text-style: bold; }
        &.-finished > .mark { color: $text-success; }
    }
    """

    def __init__(self, name: str) -> None:
        super().__init__(classes="-waiting")
        self.stage = name

    def compose(self) -> ComposeResult:
        yield Static("·", classes="mark", markup=False)
        yield Static(self.stage, classes="name", markup=False)
        yield ProgressBar(total=1, show_eta=False, show_percentage=False)
        yield Static("", classes="bytes", markup=False)
        yield Static("", classes="time", markup=False)

    def show(self, stage: StageTime) -> None:
        self.remove_class("-waiting", "-running", "-finished")
        self.add_class("-finished" if stage.finished else "-running")
        self.query_one(".mark", Static).update("✓" if stage.finished else "→")
        total = stage.total or 1
        done = total if stage.finished else stage.done
        self.query_one(ProgressBar).update(total=total, progress=min(done, total))
        self.query_one(".bytes", Static).update(_counted(stage.stage, done, stage.total))
        self.query_one(".time", Static).update(figures.seconds(stage.seconds))


def _counted(stage: str, done: int, total: int) -> str:
    """How far a stage is: tokens while KV formats are measured, else bytes; nothing where it cannot be counted."""
    if not total:
        return ""
    return f"{done:,} of {total:,} tokens" if stage == "measure" else f"{figures.size(done)} of {figures.size(total)}"


class StageList(Vertical):
    """All stages of a start, known from the beginning, so that people see what is still to come."""

    DEFAULT_CSS = "StageList { height: auto; }"

    def __init__(self, stages: Iterable[str] = ORDER) -> None:
        super().__init__(id="stages")
        self._rows = {name: StageRow(name) for name in stages}

    def compose(self) -> ComposeResult:
        yield from self._rows.values()

    async def show(self, stage: StageTime) -> None:
        """Updates one stage; one that was not expected gets a row at the end."""
        row = self._rows.get(stage.stage)
        if row is None:
            row = self._rows[stage.stage] = StageRow(stage.stage)
            await self.mount(row)
        row.show(stage)
