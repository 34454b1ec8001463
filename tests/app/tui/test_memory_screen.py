"""Predicted beside measured memory: after a start from a plan, on a screen of its own, and where nobody tells."""

from __future__ import annotations

from textual.widgets import OptionList, Static

from app.background import ServerRecord
from app.tui.app import ShardwiseApp
from app.tui.screens.memory import MemoryScreen
from app.tui.screens.start import StartScreen
from app.tui.screens.wizard import WizardScreen
from app.tui.widgets.measured_table import MeasuredTable
from tests.fakes.fake_server import FakeServer
from tests.fakes.plans import measured_plan
from tests.fakes.tui import Outside, chat_screen, on_screen, until


def text_of(screen: MemoryScreen, width: int = 78) -> str:
    return "\n".join(line.plain for line in screen.query_one(MeasuredTable).lines(width))


async def test_each_ranks_terms_stand_side_by_side_and_change_with_the_server(
    outside: Outside, fake: FakeServer
) -> None:
    fake.plan = measured_plan()
    outside.running = ServerRecord(1, fake.url, fake.model)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await chat_screen(pilot)
        await pilot.press("f7")
        screen = await on_screen(pilot, MemoryScreen)
        assert isinstance(screen, MemoryScreen)
        await until(pilot, lambda: "rank 1, cuda:1" in text_of(screen))
        row = next(line for line in text_of(screen).splitlines() if line.startswith("activations"))
        assert row.split()[1:6] == ["640", "MiB", "512", "MiB", "-20.0%"]
        assert all(len(line) <= 78 for line in text_of(screen).splitlines())
        fake.plan["measured"] = []
        screen._look()
        await until(pilot, lambda: "has just been lost" in text_of(screen))
        await pilot.press("escape")
        await chat_screen(pilot)


async def test_a_server_that_does_not_tell_is_quoted(outside: Outside, fake: FakeServer) -> None:
    outside.running = ServerRecord(1, fake.url, fake.model)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await chat_screen(pilot)
        await pilot.press("f7")
        screen = await on_screen(pilot, MemoryScreen)
        problem = screen.query_one(".problem", Static)
        await until(pilot, lambda: problem.display)
        assert "is starting" in str(problem.content)


async def test_a_start_from_a_plan_tells_how_its_memory_came_out(outside: Outside, fake: FakeServer) -> None:
    fake.plan = measured_plan()
    outside.started_url = fake.url
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await on_screen(pilot, StartScreen)
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count > 0)
        await pilot.press("f6")
        screen = await on_screen(pilot, WizardScreen)
        assert isinstance(screen, WizardScreen)
        await until(pilot, lambda: screen.report is not None and screen.settled, 20)
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press("enter")
        await chat_screen(pilot)
        await until(pilot, lambda: any("predicted" in note.message for note in app._notifications))
