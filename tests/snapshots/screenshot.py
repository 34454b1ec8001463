"""Saves a picture of a real chat: `python -m tests.snapshots.screenshot URL FILE.svg "question" ["question" ...]`.

URL is a running server's, such as http://127.0.0.1:8000; the chat is not kept.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from app.tui.app import ShardwiseApp
from app.tui.dependencies import of_this_machine
from app.tui.screens.chat import ChatScreen

SIZE = (110, 34)


async def picture(url: str, file: Path, questions: list[str], folder: Path) -> None:
    dependencies = replace(of_this_machine(), history=None, preferences=folder / "tui.json")
    app = ShardwiseApp(dependencies, connect=url)
    async with app.run_test(size=SIZE) as pilot:
        while not isinstance(app.screen, ChatScreen):
            await pilot.pause(0.1)
        for question in questions:
            app.screen.query_one("#prompt").text = question  # type: ignore[attr-defined]
            await pilot.press("enter")
            await pilot.pause(0.3)
            while app.screen.answering:
                await pilot.pause(0.2)
        await pilot.pause(0.5)
        app.save_screenshot(file.name, str(file.parent))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    with TemporaryDirectory() as temporary:
        asyncio.run(picture(sys.argv[1], Path(sys.argv[2]), sys.argv[3:], Path(temporary)))
