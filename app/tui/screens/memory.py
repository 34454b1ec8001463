"""MemoryScreen: what the running server's ranks were predicted to take, beside what they take, term by term."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from app.plan_view import EnginePlan
from app.tui.widgets.measured_table import MeasuredTable
from backend.errors import ShardwiseError

LOOK_SECONDS = 2.0


class MemoryScreen(Screen[None]):
    """Looks every two seconds while it is shown. `look` asks the server."""

    DEFAULT_CSS = """
    MemoryScreen {
        & > .lead { height: auto; padding: 0 1; margin: 0 0 1 0; background: $panel; }
        & > .problem { height: auto; padding: 0 1; color: $text-error; display: none; }
        & > VerticalScroll { height: 1fr; padding: 0 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f7", "app.pop_screen", "Back", id="memory.back", tooltip="Back to where you were"),
    ]
    HELP = """
# Memory

Each rank's memory by term: what the plan predicted before anything was loaded, and what is measured now.
Pages of the KV pool count as allocated, though a processor's memory is only taken when a page is written first.
*resident* is what the system says of the whole process now.
"""

    def __init__(self, look: Callable[[], Awaitable[tuple[EnginePlan, ...]]]) -> None:
        super().__init__()
        self._look_at = look

    def compose(self) -> ComposeResult:
        yield Static("Memory as the plan predicted it, beside what is measured now", classes="lead", markup=False)
        yield Static("", classes="problem", markup=False)
        with VerticalScroll():
            yield MeasuredTable()
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self._look()
        self.set_interval(LOOK_SECONDS, self._look)

    @work(exclusive=True, group="look")
    async def _look(self) -> None:
        problem = self.query_one(".problem", Static)
        try:
            plans = await self._look_at()
        except ShardwiseError as error:
            problem.update(str(error))
            problem.display = True
            return
        problem.display = False
        self.query_one(MeasuredTable).show(plans)
