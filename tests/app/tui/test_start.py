"""From the first screen to the chat: choosing, downloading, starting, failing, attaching."""

from __future__ import annotations

import asyncio
import json
import threading

from textual.widgets import Input, Log, OptionList, Static

from app.background import ServerRecord
from app.tui.app import ShardwiseApp
from app.tui.screens.chat import ChatScreen
from app.tui.screens.error import ErrorScreen
from app.tui.screens.help import HelpScreen
from app.tui.screens.logs import LogsScreen
from app.tui.screens.question import QuestionScreen
from app.tui.screens.start import StartScreen
from app.tui.screens.startup import StartupScreen
from app.tui.widgets.stage_list import StageRow
from backend.errors import ShardwiseError
from tests.fakes.fake_server import FakeServer
from tests.fakes.tui import Outside, chat_screen, on_screen, until

READ = {"stage": "read", "seconds": 0.4, "done": 9, "total": 9, "finished": True}
LOAD = {"stage": "load", "seconds": 1.25, "done": 5_000_000, "total": 93_000_000, "finished": False}


async def loaded(pilot) -> None:
    await on_screen(pilot, StartScreen)
    await until(pilot, lambda: pilot.app.screen.query_one(OptionList).option_count > 0)


async def test_a_newcomer_presses_enter_and_chats(outside: Outside, fake: FakeServer) -> None:
    fake.status, fake.stages, outside.started_url = "starting", [READ, LOAD], fake.url
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await loaded(pilot)
        first = str(app.screen.query_one(OptionList).options[0].prompt)
        assert "starter" in first
        assert "93 MB to download" in first
        await pilot.press("enter")
        await on_screen(pilot, StartupScreen)
        rows = {row.stage: row for row in app.screen.query(StageRow)}
        await until(pilot, lambda: rows["load"].has_class("-running"))
        assert list(rows) == ["download", "prepare", "read", "load", "pack", "warm up"]
        assert rows["download"].has_class("-finished")
        assert rows["prepare"].has_class("-finished")
        assert str(rows["load"].query_one(".bytes", Static).content) == "5.0 MB of 93 MB"
        assert str(rows["load"].query_one(".time", Static).content) == "1.2 s"
        assert rows["warm up"].has_class("-waiting")
        fake.status = "ready"
        screen = await chat_screen(pilot)
        assert screen.model.id == "fake/model"
    assert outside.asked == ["fetch starter", "start starter"]
    assert json.loads((outside.folder / "tui.json").read_text())["model"] == "starter"


async def test_a_first_start_that_compiles_says_why_it_takes_long(outside: Outside, fake: FakeServer) -> None:
    packing = {"stage": "pack", "seconds": 9.0, "done": 0, "total": 0, "finished": False}
    fake.status, fake.stages, outside.started_url = "starting", [READ, packing], fake.url
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await loaded(pilot)
        await pilot.press("enter")
        await on_screen(pilot, StartupScreen)
        note = app.screen.query_one(".note", Static)
        await until(pilot, lambda: "compiles" in str(note.content))
        fake.stages = [READ, {**packing, "finished": True}]
        await until(pilot, lambda: not str(note.content))


async def test_a_name_can_be_typed(outside: Outside, fake: FakeServer) -> None:
    outside.started_url = fake.url
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await loaded(pilot)
        await pilot.press("tab", *"org/name", "enter")
        await chat_screen(pilot)
    assert outside.asked == ["fetch org/name", "start org/name"]


async def test_a_running_server_is_attached_to_and_survives(outside: Outside, fake: FakeServer) -> None:
    outside.running = ServerRecord(1, fake.url, fake.model)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await chat_screen(pilot)
        await pilot.press("ctrl+q")
    assert app.url == fake.url
    assert outside.asked == []
    assert app.return_code == 0


async def test_a_server_that_is_starting_is_waited_for(outside: Outside, fake: FakeServer) -> None:
    fake.status, fake.stages = "starting", [LOAD]
    app = ShardwiseApp(outside.dependencies(), connect=fake.url)
    async with app.run_test() as pilot:
        await on_screen(pilot, StartupScreen)
        fake.status = "restarting"
        await until(pilot, lambda: "died" in str(app.screen.query_one(".note", Static).content))
        fake.status = "ready"
        await chat_screen(pilot)


async def test_a_failed_start_says_what_why_and_what_to_do(outside: Outside, fake: FakeServer) -> None:
    fake.status, outside.started_url = "failed", fake.url
    fake.error = "The weights do not fit\nGPU 0 has 3 GB free, they need 5 GB.\nChoose a smaller model."
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await loaded(pilot)
        await pilot.press("enter")
        await on_screen(pilot, ErrorScreen)
        texts = [str(app.screen.query_one(f".{part}", Static).content) for part in ("what", "why", "hint")]
        assert texts == [
            "The weights do not fit",
            "GPU 0 has 3 GB free, they need 5 GB.",
            "Choose a smaller model.",
        ]
        fake.status = "ready"
        await pilot.press("r")
        await chat_screen(pilot)


async def test_another_model_can_be_chosen_after_a_failure(outside: Outside) -> None:
    outside.start_error = ShardwiseError("No port is free")
    app = ShardwiseApp(outside.dependencies(), model="org/broken")
    async with app.run_test() as pilot:
        await on_screen(pilot, ErrorScreen)
        await pilot.press("m")
        await loaded(pilot)
        await pilot.press("ctrl+q")
    assert app.url is None


async def test_nobody_at_the_address_is_an_error_that_can_be_left(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies(), connect="http://127.0.0.1:9")
    async with app.run_test() as pilot:
        await on_screen(pilot, ErrorScreen)
        assert not app.screen.query("#choose")
        await pilot.press("q")
    assert not app.is_running


async def test_a_download_can_be_cancelled(outside: Outside, monkeypatch) -> None:
    ended = threading.Event()

    def endless(model: str, report) -> None:
        try:
            while True:
                report(1, 100)
                ended.wait(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(outside, "_fetch", endless)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        await loaded(pilot)
        await pilot.press("enter")
        await on_screen(pilot, StartupScreen)
        await pilot.press("escape")
        await loaded(pilot)
        assert await asyncio.to_thread(ended.wait, 5)


async def test_another_model_asks_about_the_server_in_use(outside: Outside, fake: FakeServer, monkeypatch) -> None:
    stopped: list[int] = []

    async def stop(pid: int) -> bool:
        stopped.append(pid)
        return True

    monkeypatch.setattr("app.background.stop_server", stop)
    outside.running, outside.started_url = ServerRecord(7, fake.url, fake.model), fake.url
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        before = await chat_screen(pilot)
        await pilot.press("ctrl+o")
        await loaded(pilot)
        await pilot.press("down", "enter")
        await on_screen(pilot, QuestionScreen)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is before)
        assert stopped == [7]
        assert outside.asked == ["fetch org/other", "start org/other"]
        await pilot.press("ctrl+o")
        await loaded(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is before)


async def test_help_shows_the_keys_of_the_screen_and_the_log_is_followed(outside: Outside, fake: FakeServer) -> None:
    outside.running = ServerRecord(1, fake.url, fake.model)
    log = outside.folder / "server.log"
    log.write_text("first line\x1b[2J\n")
    app = ShardwiseApp(outside.dependencies())
    app._log_path = lambda: log  # type: ignore[method-assign]
    async with app.run_test() as pilot:
        await chat_screen(pilot)
        await pilot.press("f1")
        await on_screen(pilot, HelpScreen)
        keys = str(app.screen.query_one(".keys", Static).content)
        assert "System prompt and sampling" in keys
        assert "ctrl" in keys or "^n" in keys
        await pilot.press("f1")
        await on_screen(pilot, ChatScreen)
        await pilot.press("f9")
        await on_screen(pilot, LogsScreen)
        await until(pilot, lambda: "first line" in app.screen.query_one(Log).lines)
        with log.open("a") as file:
            file.write("second\x1b]0;t\x07 line\n")
        await until(pilot, lambda: "second line" in app.screen.query_one(Log).lines)
        await pilot.press("escape")
        await on_screen(pilot, ChatScreen)


async def test_the_palette_has_every_action_and_the_theme_is_remembered(outside: Outside, fake: FakeServer) -> None:
    outside.running = ServerRecord(1, fake.url, fake.model)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test() as pilot:
        screen = await chat_screen(pilot)
        titles = {command.title for command in app.get_system_commands(screen)}
        assert {"New chat", "Regenerate", "Export chat as json", "Stop server", "Choose model", "Theme"} <= titles
        app.theme = "nord"
        await pilot.pause()
    again = ShardwiseApp(outside.dependencies())
    assert again.theme == "nord"


async def test_the_list_of_models_can_fail_and_a_name_still_be_typed(outside: Outside, monkeypatch) -> None:
    dependencies = outside.dependencies()

    def broken():
        raise ShardwiseError("The library cannot be read", "Permission denied.")

    object.__setattr__(dependencies, "choices", broken)
    app = ShardwiseApp(dependencies)
    async with app.run_test() as pilot:
        await on_screen(pilot, StartScreen)
        await until(pilot, lambda: "Permission denied" in str(app.screen.query_one(".problem", Static).content))
        assert isinstance(app.focused, Input)
