"""Pictures of the wizard on each fake machine, at both sizes, driven by keys; `pytest --snapshot-update` after looking.

The figures are the planner's own: they change with it, and a picture that changed for no other reason is updated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from app.background import ServerRecord
from app.tui.app import ShardwiseApp
from app.tui.dependencies import ModelChoice
from app.tui.screens.compare import CompareScreen
from app.tui.screens.memory import MemoryScreen
from app.tui.screens.start import StartScreen
from app.tui.screens.wizard import WizardScreen
from app.tui.widgets.measured_table import MeasuredTable
from backend.errors import ModelAccessError
from backend.hardware.machine import Machine
from tests.fakes.fake_server import FakeServer
from tests.fakes.machines import cpu_machine
from tests.fakes.plans import measured_plan
from tests.fakes.topology import machine_of
from tests.fakes.tui import Outside, chat_screen, on_screen, until

SMALL, LARGE = (80, 24), (160, 48)
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x48"])
LLAMA_70B, QWEN_32B, QWEN_8B = "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-32B", "Qwen/Qwen3-8B"
# Each machine with what a person who has it would ask for.
MACHINES: dict[str, tuple[Callable[[], Machine], str]] = {
    "dgx-h100": (partial(machine_of, "dgx-h100"), LLAMA_70B),
    "a100-pairs": (partial(machine_of, "a100-pairs"), LLAMA_70B),
    "rtx3090-bridge": (partial(machine_of, "rtx3090-bridge"), QWEN_32B),
    "rtx3090-pcie": (partial(machine_of, "rtx3090-pcie"), QWEN_32B),
    "unequal": (partial(machine_of, "unequal"), QWEN_32B),
    "one-rtx4090": (partial(machine_of, "one-rtx4090"), QWEN_8B),
    "none": (cpu_machine, "starter"),
}
ON_EACH_MACHINE = pytest.mark.parametrize("name", MACHINES)


async def planned(pilot: Pilot, step: str) -> WizardScreen:
    """Opens the wizard for the highlighted model, and goes to a step, by keys."""
    await on_screen(pilot, StartScreen)
    await until(pilot, lambda: pilot.app.screen.query_one(OptionList).option_count > 0)
    await pilot.press("f6")
    screen = await on_screen(pilot, WizardScreen)
    assert isinstance(screen, WizardScreen)
    await pilot.press(step)
    await settled(pilot, screen)
    return screen


async def settled(pilot: Pilot, screen: WizardScreen) -> None:
    await pilot.pause()
    await until(pilot, lambda: screen.settled and screen.report is not None, 20)
    for each in screen.query(Input):
        each.cursor_blink = False
    await pilot.pause()


def app_on(outside: Outside, name: str) -> ShardwiseApp:
    outside.wizard.machine, model = MACHINES[name]
    outside.choices = (ModelChoice(model, None, True),)
    return ShardwiseApp(outside.dependencies())


@pytest.mark.parametrize("name", ["dgx-h100", "a100-pairs", "none"])
def test_machine_on_a_small_terminal(snap_compare, outside: Outside, name: str) -> None:
    run = partial(planned, step="f2")
    assert snap_compare(app_on(outside, name), terminal_size=SMALL, run_before=run)


@ON_EACH_MACHINE
def test_plans_on_a_small_terminal(snap_compare, outside: Outside, name: str) -> None:
    run = partial(planned, step="f5")
    assert snap_compare(app_on(outside, name), terminal_size=SMALL, run_before=run)


@ON_EACH_MACHINE
def test_all_at_once_on_a_large_terminal(snap_compare, outside: Outside, name: str) -> None:
    run = partial(planned, step="f5")
    assert snap_compare(app_on(outside, name), terminal_size=LARGE, run_before=run)


def test_wishes_above_the_plans_they_make(snap_compare, outside: Outside) -> None:
    async def run(pilot: Pilot) -> None:
        screen = await planned(pilot, "f4")
        await pilot.press("down", "down", "right", "right")
        await settled(pilot, screen)

    assert snap_compare(app_on(outside, "none"), terminal_size=SMALL, run_before=run)


def test_a_gated_model_is_explained_in_place(snap_compare, outside: Outside) -> None:
    outside.wizard.failures["org/gated"] = ModelAccessError(
        "org/gated is gated", "Its authors ask for terms to be accepted.", "Accept them at the hub, then set HF_TOKEN."
    )

    async def run(pilot: Pilot) -> None:
        screen = await planned(pilot, "f3")
        await pilot.press(*"org/gated", "enter")
        await settled(pilot, screen)

    assert snap_compare(app_on(outside, "none"), terminal_size=SMALL, run_before=run)


@SIZES
def test_two_plans_side_by_side(snap_compare, outside: Outside, size: tuple[int, int]) -> None:
    async def run(pilot: Pilot) -> None:
        await planned(pilot, "f5")
        await pilot.press("m", "down", "down", "c")
        await on_screen(pilot, CompareScreen)
        await pilot.pause()

    assert snap_compare(app_on(outside, "a100-pairs"), terminal_size=size, run_before=run)


@SIZES
def test_predicted_beside_measured_memory(
    snap_compare, outside: Outside, fake: FakeServer, size: tuple[int, int]
) -> None:
    fake.plan = measured_plan()
    outside.running = ServerRecord(1, fake.url, fake.model)

    async def run(pilot: Pilot) -> None:
        await chat_screen(pilot)
        await pilot.press("f7")
        screen = await on_screen(pilot, MemoryScreen)
        table = screen.query_one(MeasuredTable)
        await until(pilot, lambda: len(table.lines(80)) > 10)
        await pilot.pause()

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)
