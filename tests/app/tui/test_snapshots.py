"""Pictures of the screens at the two sizes that people have; `pytest --snapshot-update` after looking at them."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList

from app.background import ServerRecord
from app.client import AnswerStatistics
from app.tui.app import ShardwiseApp
from app.tui.screens.error import ErrorScreen
from app.tui.screens.start import StartScreen
from app.tui.widgets.banner import Banner
from app.tui.widgets.prompt_input import PromptInput
from app.tui.widgets.sampling_panel import SamplingPanel
from app.tui.widgets.status_line import StatusLine
from app.tui.widgets.transcript import Transcript
from backend.errors import ShardwiseError
from tests.fakes.fake_server import FakeServer
from tests.fakes.tui import Outside, chat_screen, on_screen, say, until

SIZES = pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=["80x24", "160x48"])
ANSWER = """## Sorting in Python

`sorted` makes a **new** list:

```python
def largest_first(numbers):
    return sorted(numbers, reverse=True)
```

- it is *stable*
- it takes a `key`
"""


async def still(pilot: Pilot) -> None:
    """No blinking cursor and no scrolling in the picture."""
    for prompt in pilot.app.screen.query(PromptInput):
        prompt.cursor_blink = False
    await pilot.pause(0.2)
    for transcript in pilot.app.screen.query(Transcript):
        transcript.scroll_end(animate=False, immediate=True)
    await pilot.pause()


@SIZES
def test_start(snap_compare, outside: Outside, size: tuple[int, int]) -> None:
    async def run(pilot: Pilot) -> None:
        await on_screen(pilot, StartScreen)
        await until(pilot, lambda: pilot.app.screen.query_one(OptionList).option_count > 0)
        await still(pilot)

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)


@SIZES
def test_chat(snap_compare, outside: Outside, fake: FakeServer, size: tuple[int, int]) -> None:
    fake.pieces = [ANSWER]
    outside.running = ServerRecord(1, fake.url, fake.model)

    async def run(pilot: Pilot) -> None:
        await say(pilot, "How do I sort a list,\nlargest first?")
        screen = await chat_screen(pilot)
        if size[0] > 100:
            await pilot.press("f3")
            await until(pilot, lambda: bool(screen.query(SamplingPanel)))
            screen.query_one(PromptInput).focus()
        # Figures of a real run differ each time.
        screen.query_one(StatusLine).statistics = AnswerStatistics(31, 56, 0.21, 87.4)
        await still(pilot)

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)


@SIZES
def test_fallback(snap_compare, outside: Outside, fake: FakeServer, size: tuple[int, int]) -> None:
    outside.running = ServerRecord(1, fake.url, fake.model)

    async def run(pilot: Pilot) -> None:
        await say(pilot, "Who answers?")
        screen = await chat_screen(pilot)
        fake.status, fake.fallback = "degraded", "org/small"
        await until(pilot, lambda: "org/small" in screen.query_one(Banner).text)
        screen.query_one(StatusLine).statistics = AnswerStatistics(31, 56, 0.21, 87.4)
        await still(pilot)

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)


@SIZES
def test_error(snap_compare, outside: Outside, size: tuple[int, int]) -> None:
    outside.start_error = ShardwiseError(
        "The model does not fit on GPU 0",
        "Weights 15.2 GB and KV 2.0 GB make 17.2 GB; 11.8 GB are free.",
        "Choose a smaller model, or shorten the context with --max-context 4096.",
    )

    async def run(pilot: Pilot) -> None:
        await on_screen(pilot, ErrorScreen)
        await still(pilot)

    app = ShardwiseApp(outside.dependencies(), model="org/large")
    assert snap_compare(app, terminal_size=size, run_before=run)
