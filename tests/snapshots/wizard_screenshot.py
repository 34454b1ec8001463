"""Saves a picture of the wizard: `python -m tests.snapshots.wizard_screenshot FILE.svg [MODEL] [HARDWARE]`.

Needs no network: MODEL is one of the catalogue, HARDWARE a machine in words (`shardwise fit --help`).
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from app.background import ServerRecord
from app.tui.app import ShardwiseApp
from app.tui.dependencies import Dependencies, of_this_machine
from app.tui.fit.wishes import Wishes
from app.tui.screens.start import StartScreen
from app.tui.screens.wizard import WizardScreen
from backend.library.model_table import known_from_catalogue
from backend.planner.fit.known_model import KnownModel

SIZE = (150, 44)
MODEL, HARDWARE = "meta-llama/Llama-3.3-70B-Instruct", "4x H100-80GB"


async def picture(file: Path, model: str, hardware: str, dependencies: Dependencies) -> None:
    app = ShardwiseApp(dependencies)
    async with app.run_test(size=SIZE) as pilot:
        while not isinstance(app.screen, StartScreen):
            await pilot.pause(0.1)
        wishes = Wishes(model, hardware, users=8, context=32_768)
        screen = WizardScreen(dependencies.wizard, wishes)
        await app.push_screen(screen)
        while screen.report is None or not screen.settled:
            await pilot.pause(0.1)
        await pilot.press("f5")
        await pilot.pause(0.5)
        app.save_screenshot(file.name, str(file.parent))


def _of_the_catalogue(model: str) -> KnownModel:
    known = known_from_catalogue(model)
    if known is None:
        sys.exit(f"{model} is not in the catalogue: `shardwise fit` lists it")
    return known


async def _nothing_runs(model: str | None) -> ServerRecord | None:
    return None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with TemporaryDirectory() as temporary:
        real = replace(of_this_machine(), history=None, preferences=Path(temporary) / "tui.json", find=_nothing_runs)
        real = replace(real, wizard=replace(real.wizard, known=_of_the_catalogue))
        model, hardware, *_ = (*sys.argv[2:4], *(MODEL, HARDWARE)[len(sys.argv[2:4]) :])
        asyncio.run(picture(Path(sys.argv[1]), model, hardware, real))
