"""The wizard by keyboard alone: from a machine, a model and wishes to a server with the plan's options."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from app.background import ServerRecord
from app.tui.app import ShardwiseApp
from app.tui.dependencies import ModelChoice
from app.tui.fit.wishes import USERS
from app.tui.screens.compare import CompareScreen
from app.tui.screens.error import ErrorScreen
from app.tui.screens.question import QuestionScreen
from app.tui.screens.start import StartScreen
from app.tui.screens.startup import StartupScreen
from app.tui.screens.wizard import WizardScreen
from app.tui.widgets.machine_panel import MachinePanel
from app.tui.widgets.machine_picture_view import MachinePictureView
from app.tui.widgets.model_panel import ModelPanel
from app.tui.widgets.plan_details import PlanDetails, WaysOut
from app.tui.widgets.slider import LABEL_CELLS, Slider
from backend.errors import DownloadError, ModelAccessError, ShardwiseError
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.report import FitReport
from tests.fakes.fake_server import FakeServer
from tests.fakes.machines import GIB, cpu_machine
from tests.fakes.topology import machine_of
from tests.fakes.tui import Outside, chat_screen, on_screen, until

SMALL, LARGE = (80, 24), (160, 48)
BIG_MODEL = "meta-llama/Meta-Llama-3.1-70B"


async def wizard(pilot: Pilot) -> WizardScreen:
    """Opens the wizard from the first screen, with the starter, and waits for its plans."""
    await on_screen(pilot, StartScreen)
    await until(pilot, lambda: pilot.app.screen.query_one(OptionList).option_count > 0)
    await pilot.press("f6")
    return await opened(pilot)


async def opened(pilot: Pilot) -> WizardScreen:
    screen = await on_screen(pilot, WizardScreen)
    assert isinstance(screen, WizardScreen)
    await settle(pilot, screen)
    return screen


async def settle(pilot: Pilot, screen: WizardScreen) -> None:
    """Until all is read and planned, and drawn."""
    await pilot.pause()
    await until(pilot, lambda: screen.settled and screen.report is not None, 20)
    await pilot.pause()


def report(screen: WizardScreen) -> FitReport:
    assert screen.report is not None
    return screen.report


def text_of(screen: WizardScreen, selector: str) -> str:
    return " ".join(str(screen.query_one(selector, Static).content).split())


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x48"])
async def test_from_a_model_to_a_server_with_the_plans_options(
    outside: Outside, fake: FakeServer, size: tuple[int, int]
) -> None:
    outside.started_url = fake.url
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=size) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("right", "down", "home", "right", "right", "down", "right", "right")
        await settle(pilot, screen)
        ask = outside.wizard.asks[-1]
        assert (ask.goal, ask.context, ask.users) == ("throughput", 4096, 4)
        await pilot.press("f5")
        await pilot.pause()
        number = next(number for number, plan in enumerate(report(screen).plans) if plan.runnable and plan.options)
        plan = report(screen).plans[number]
        await pilot.press("home", *(["down"] * number), "enter")
        await chat_screen(pilot)
    assert outside.asked == ["fetch starter", " ".join(("start starter", *plan.options))]


async def test_every_step_of_a_slider_plans_again_and_answers_that_were_overtaken_are_dropped(outside: Outside) -> None:
    release, first = threading.Event(), threading.Event()
    world = outside.wizard
    honest = world._fit

    def slow(model, cluster, ask):
        first.set()
        release.wait(5)
        return honest(model, cluster, ask)

    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        seen = len(world.asks)
        object.__setattr__(screen._outside, "fit", slow)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("down", "down", "right")
        await until(pilot, first.is_set)
        await pilot.press("right", "right", "right", "end")
        assert screen.query_one("#users", Slider).index == 10
        release.set()
        await settle(pilot, screen)
        assert [ask.users for ask in world.asks[seen:]] == [2, 1024]
        assert report(screen).ask.users == 1024


async def test_sliders_answer_home_end_and_arrows_and_stop_at_their_ends(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("down")
        context = screen.query_one("#context", Slider)
        assert context.has_focus
        assert context.stops == ("1K", "2K", "4K", "8K")
        for key, index in (("home", 0), ("left", 0), ("right", 1), ("end", 3), ("right", 3)):
            await pilot.press(key)
            assert context.index == index
        await settle(pilot, screen)


async def test_two_plans_are_compared_and_one_of_them_used(outside: Outside, fake: FakeServer) -> None:
    outside.started_url = fake.url
    outside.wizard.machine = partial(machine_of, "a100-pairs")
    outside.choices = (ModelChoice(BIG_MODEL, None, True),)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f5")
        await pilot.pause()
        plans = report(screen).plans
        other = next(number for number, plan in enumerate(plans) if number and plan.runnable and plan.options)
        await pilot.press("m", *(["down"] * other), "c")
        compare = await on_screen(pilot, CompareScreen)
        rows = str(compare.query_one(".rows", Static).content)
        assert "≠ weights" in rows or "≠ layout" in rows
        assert "A: plan 1" in str(compare.query_one(".head", Static).content)
        await pilot.press("x")
        assert f"A: plan {other + 1}" in str(compare.query_one(".head", Static).content)
        await pilot.press("a")
        await chat_screen(pilot)
    assert outside.asked[-1] == " ".join(("start", screen.wishes.model, *plans[other].options))


async def test_a_plan_that_this_version_cannot_run_says_why(outside: Outside) -> None:
    outside.wizard.machine = partial(machine_of, "rtx3090-bridge")
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=LARGE) as pilot:
        screen = await wizard(pilot)
        plans = report(screen).plans
        number = next(number for number, plan in enumerate(plans) if not plan.runnable)
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press(*(["down"] * number))
        assert "This version does not run it" in text_of(screen, "PlanDetails .verdict")
        await pilot.press("enter")
        await until(pilot, lambda: bool(app._notifications))
        assert plans[number].blocked in [note.message for note in app._notifications]
        assert app.screen is screen
    assert outside.asked == []


async def test_a_way_out_is_made_by_pressing_enter_on_it(outside: Outside) -> None:
    outside.wizard.machine = partial(machine_of, "rtx3090-bridge")
    outside.choices = (ModelChoice("Qwen/Qwen3-32B", None, True),)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("down", "end", "down", "right", "down", "down", "right")
        await settle(pilot, screen)
        assert report(screen).best is None
        ways = report(screen).ways_out
        number = next(number for number, way in enumerate(ways) if screen.wishes.with_option(way.option))
        expected = screen.wishes.with_option(ways[number].option)
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press("tab", "tab")
        assert isinstance(app.focused, WaysOut)
        await pilot.press(*(["down"] * number), "enter")
        await until(pilot, lambda: screen.wishes == expected)
        await settle(pilot, screen)
        assert report(screen).best is not None


async def test_a_machine_elsewhere_is_planned_for_and_its_command_copied(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=LARGE) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f2")
        await pilot.pause()
        await pilot.press(*["backspace"] * 5, *"4x H100-80GB", "enter")
        await until(pilot, lambda: screen.wishes.hardware == "4x H100-80GB")
        await settle(pilot, screen)
        picture = screen.query_one(MachinePictureView)
        assert "GPU 3" in "".join(line.plain for line in picture.lines(60))
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: bool(app._notifications))
        assert "shardwise serve starter" in app.clipboard
    assert outside.asked == []


async def test_hardware_that_is_not_understood_is_explained_and_the_plans_stay(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        before = screen.report
        await pilot.press(*["backspace"] * 5, *"4x H999", "enter")
        problem = screen.query_one(MachinePanel).query_one(".problem", Static)
        await until(pilot, lambda: problem.display)
        assert "H999" in str(problem.content)
        assert screen.report is before
        assert screen.wishes.hardware == "local"


async def test_a_model_that_cannot_be_known_says_why_and_what_to_do(outside: Outside) -> None:
    outside.wizard.failures = {
        "a/gated": ModelAccessError("a/gated is gated", "It asks for terms.", "Accept them, and set HF_TOKEN."),
        "a/away": DownloadError("The hub cannot be reached", "No route to host.", "Check the network."),
    }
    expected: dict[str, tuple[str, ...]] = {
        name: (error.what, error.why, error.hint) for name, error in outside.wizard.failures.items()
    }
    expected["a/none"] = ("No model is called 'a/none'", "Check the name.")
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        before = screen.report
        await pilot.press("f3")
        await pilot.pause()
        for name, parts in expected.items():
            await pilot.press("ctrl+u", *name, "enter")
            problem = screen.query_one(ModelPanel).query_one(".problem", Static)
            await until(pilot, lambda parts=parts, text=problem: parts[0] in str(text.content))
            assert problem.display
            assert all(part in str(problem.content) for part in parts)
            assert outside.wizard.looked_up[-1] == name
            assert screen.report is before
            assert "135M parameters" in text_of(screen, "ModelPanel .chosen")


async def test_models_of_the_catalogue_are_found_by_words_and_chosen_with_arrows(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f3")
        await pilot.pause()
        await pilot.press(*"qwen3 8b")
        offers = screen.query_one("#offers", OptionList)
        listed = [option.id for option in offers.options]
        assert listed[0] == "Qwen/Qwen3-8B"
        await pilot.press("down", "enter")
        await until(pilot, lambda: screen.wishes.model == listed[0])
        await settle(pilot, screen)
        assert report(screen).model == "Qwen/Qwen3-8B"


async def test_a_model_of_the_catalogue_is_planned_for_before_the_hub_has_answered(outside: Outside) -> None:
    outside.choices = (ModelChoice("Qwen/Qwen3-8B", None, True),)
    answered = threading.Event()
    world = outside.wizard
    exact = replace(world._known("Qwen/Qwen3-8B"), source="the hub's config and headers")

    def slow(name: str) -> KnownModel:
        answered.wait(5)
        return exact

    world._known = slow  # type: ignore[method-assign]
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        await on_screen(pilot, StartScreen)
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count > 0)
        await pilot.press("f6")
        screen = await on_screen(pilot, WizardScreen)
        assert isinstance(screen, WizardScreen)
        await until(pilot, lambda: screen.report is not None)
        assert "catalogue" in report(screen).source
        answered.set()
        await settle(pilot, screen)
        assert report(screen).source == "the hub's config and headers"


async def test_prices_are_read_as_typed_and_refused_in_place(outside: Outside) -> None:
    outside.wizard.machine = partial(machine_of, "one-rtx4090")
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=LARGE) as pilot:
        screen = await wizard(pilot)
        screen.query_one("#price", Input).focus()
        await pilot.press(*"0.5")
        await settle(pilot, screen)
        assert report(screen).ask.price == 0.5
        await pilot.press("x")
        problem = screen.query_one("#wishes .problem", Static)
        assert problem.display
        assert screen.wishes.price == 0.5


async def test_engine_and_formats_are_chosen_with_arrows(outside: Outside) -> None:
    outside.wizard.machine = partial(machine_of, "one-rtx4090")
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("down", "down", "down", "down", "right", "right", "down", "end")
        await settle(pilot, screen)
        assert (report(screen).ask.weights, report(screen).ask.kv_formats) == (("int8",), ("int8",))
        plans = [plan for number, plan in enumerate(report(screen).plans) if number != report(screen).serve]
        assert {(plan.weights, plan.kv_format) for plan in plans} == {("int8", "int8")}


async def test_a_plan_is_started_anew_though_the_model_is_served_already(
    outside: Outside, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[int] = []

    async def stop(pid: int) -> bool:
        stopped.append(pid)
        return True

    monkeypatch.setattr("app.background.stop_server", stop)
    outside.running, outside.started_url, fake.model = ServerRecord(7, fake.url, "starter"), fake.url, "starter"
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        chat = await chat_screen(pilot)
        await pilot.press("f6")
        screen = await opened(pilot)
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press("enter")
        await on_screen(pilot, QuestionScreen)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)
        await pilot.press("enter")
        await on_screen(pilot, QuestionScreen)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is chat)
        assert not any(isinstance(each, WizardScreen | StartupScreen) for each in app.screen_stack)
    assert stopped == [7]
    assert outside.asked[-1].startswith("start starter")


async def test_the_wizard_is_left_and_found_as_it_was(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("down", "home")
        await settle(pilot, screen)
        await pilot.press("escape")
        await on_screen(pilot, StartScreen)
        again = await wizard(pilot)
        assert again is not screen
        assert again.wishes.context == 1024
        assert report(again).ask.context == 1024


async def test_the_first_screen_has_a_button_for_it(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        await on_screen(pilot, StartScreen)
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count > 0)
        await pilot.press("tab", "tab", "enter")
        await on_screen(pilot, WizardScreen)


async def test_the_palette_has_it_and_attached_elsewhere_it_starts_nothing(outside: Outside, fake: FakeServer) -> None:
    fake.model = "starter"
    app = ShardwiseApp(outside.dependencies(), connect=fake.url)
    async with app.run_test(size=SMALL) as pilot:
        chat = await chat_screen(pilot)
        commands = {command.title: command for command in app.get_system_commands(chat)}
        commands["What fits"].callback()
        screen = await opened(pilot)
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: bool(app._notifications))
        assert app.screen is screen
    assert outside.asked == []


async def test_a_terminal_that_changes_its_width_keeps_everything(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        assert not screen.query_one(ModelPanel).display
        await pilot.resize_terminal(*LARGE)
        await pilot.pause()
        assert screen.query_one(ModelPanel).display
        assert screen.query_one(PlanDetails).display
        await pilot.resize_terminal(*SMALL)
        await pilot.pause()
        assert screen.query_one(MachinePanel).display
        assert screen.max_scroll_x == 0


async def test_a_machine_with_too_little_memory_is_told_so_at_once(outside: Outside) -> None:
    outside.wizard.machine = partial(cpu_machine, 2 * GIB)
    outside.choices = (ModelChoice(BIG_MODEL, None, True),)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        assert report(screen).best is None
        assert "does not fit" in text_of(screen, "#headline")
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: bool(app._notifications))
    assert outside.asked == []


async def test_a_start_that_failed_is_tried_again_with_the_plans_options(outside: Outside, fake: FakeServer) -> None:
    outside.start_error = ShardwiseError("No port is free")
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        number = next(number for number, plan in enumerate(report(screen).plans) if plan.runnable and plan.options)
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press(*(["down"] * number), "enter")
        await on_screen(pilot, ErrorScreen)
        outside.start_error, outside.started_url = None, fake.url
        await pilot.press("r")
        await chat_screen(pilot)
    started = [each for each in outside.asked if each.startswith("start")]
    assert started == [" ".join(("start starter", *report(screen).plans[number].options))] * 2


async def test_a_plan_for_vllm_is_a_command_to_copy(outside: Outside) -> None:
    outside.wizard.machine = partial(machine_of, "one-rtx4090")
    outside.choices = (ModelChoice("Qwen/Qwen3-8B", None, True),)
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("down", "down", "down", "right")
        await settle(pilot, screen)
        assert report(screen).ask.engine == "vllm"
        assert "runs" not in str(screen.query_one("#plans .head", Static).content)
        await pilot.press("f5")
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: app.clipboard.startswith("vllm serve Qwen/Qwen3-8B --max-model-len"))
    assert outside.asked == []


async def test_what_cannot_be_planned_says_why(outside: Outside) -> None:
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.press("down", "down", "down", "right")
        await until(pilot, lambda: screen.report is None and screen.settled)
        assert "cannot be planned" in text_of(screen, "PlanDetails .verdict")
        await pilot.press("left")
        await settle(pilot, screen)
        assert report(screen).best == 0


async def test_a_slider_and_a_choice_answer_the_mouse(outside: Outside) -> None:
    outside.wizard.machine = partial(machine_of, "one-rtx4090")
    app = ShardwiseApp(outside.dependencies())
    async with app.run_test(size=SMALL) as pilot:
        screen = await wizard(pilot)
        await pilot.press("f4")
        await pilot.pause()
        await pilot.click("#users", offset=(LABEL_CELLS + 2, 0))
        assert screen.query_one("#users", Slider).index == 0
        await pilot.click("#users", offset=(LABEL_CELLS + 1 + screen.query_one("#users", Slider)._track, 0))
        assert screen.query_one("#users", Slider).index == len(USERS) - 1
        await pilot.click("#engine", offset=(LABEL_CELLS + 1 + len("[shardwise]") + 2, 0))
        await settle(pilot, screen)
        assert (report(screen).ask.users, report(screen).ask.engine) == (USERS[-1], "vllm")
