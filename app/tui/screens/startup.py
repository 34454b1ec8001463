"""StartupScreen: follows a model from its download to the first answer it can give, stage by stage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Static

from app import background
from app.background import StartedServer
from app.client import ShardwiseClient
from app.health_view import Health
from app.text_safety import clean_line
from app.tui.daemon_thread import in_daemon_thread
from app.tui.dependencies import Dependencies
from app.tui.widgets.stage_list import StageList
from backend.engine_client import StageTime
from backend.errors import ShardwiseError

DRAW_SECONDS = 0.1
COMPILING = "The first start on a machine compiles kernels; the next one will not."
COMPILING_SECONDS = 4.0
RESTARTING = "The engine died and is being started again; F9 shows why."


class _GivenUpError(Exception):
    """Raised inside the library's progress callback, to end a download that nobody wants any more."""


class StartupScreen(Screen[None]):
    """Fetches and starts `model` with these options of `serve`; with a `url`, follows a server that is starting."""

    DEFAULT_CSS = """
    StartupScreen {
        align: center middle;
        & > Vertical {
            width: 90%;
            max-width: 90;
            height: auto;
            padding: 1 2;
            border: round $border;
            background: $surface;
        }
        .title { text-style: bold; margin: 0 0 1 0; }
        .note { color: $text-warning; height: auto; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", id="startup.cancel", tooltip="Stop, and choose a model")
    ]
    HELP = """
# Starting

The model is downloaded (a download that is cancelled goes on later where it stopped) and prepared, which for some
formats means making its tokenizer once; its files are read, loaded, and packed for this machine; the engine warms up.
On a machine's first start that includes compiling. `F9` shows the server's log; `escape` cancels.
"""

    class Ready(Message):
        """The server at `url` answers requests."""

        def __init__(self, url: str, model: str) -> None:
            super().__init__()
            self.url, self.model = url, model

    class Failed(Message):
        """It did not work out."""

        def __init__(self, error: ShardwiseError, model: str) -> None:
            super().__init__()
            self.error, self.model = error, model

    class Cancelled(Message):
        """The user does not want to wait."""

    def __init__(
        self,
        dependencies: Dependencies,
        make_client: Callable[[str], ShardwiseClient],
        model: str,
        url: str | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._dependencies = dependencies
        self._make_client = make_client
        self.model = model
        self.url = url
        self.options = options
        self.started: StartedServer | None = None
        self._given_up = threading.Event()

    def compose(self) -> ComposeResult:
        with Vertical():
            options = f" with {' '.join(self.options)}" if self.options else ""
            yield Static(f"Starting {clean_line(self.model, 80)}{options}", classes="title", markup=False)
            yield StageList()
            yield Static("", classes="note", markup=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._run()

    @work(exclusive=True, group="startup")
    async def _run(self) -> None:
        try:
            if self.url is None:
                await self._fetch()
                self.started = self._dependencies.start(self.model, self.options)
                self.url = self.started.url
            await self._follow(self.url)
        except _GivenUpError:
            return
        except ShardwiseError as error:
            self.post_message(self.Failed(error, self.model))
            return
        self.post_message(self.Ready(self.url, self.model))

    async def _fetch(self) -> None:
        begin = perf_counter()
        seen = (0, 0)

        def report(done: int, total: int) -> None:
            """Called in the library's thread, as often as it likes."""
            nonlocal seen
            if self._given_up.is_set():
                raise _GivenUpError
            seen = (done, total)

        downloaded: float | None = None

        async def draw(finished: bool = False) -> None:
            """What comes after the last byte, making a tokenizer for example, is a stage of its own."""
            nonlocal downloaded
            now = perf_counter()
            if downloaded is None and (finished or 0 < seen[1] <= seen[0]):
                downloaded = now
            stages = self.query_one(StageList)
            await stages.show(StageTime("download", (downloaded or now) - begin, *seen, downloaded is not None))
            if downloaded is not None:
                await stages.show(StageTime("prepare", now - downloaded, 0, 0, finished))

        drawing = self.set_interval(DRAW_SECONDS, draw)
        try:
            await in_daemon_thread(lambda: self._dependencies.fetch(self.model, report))
        finally:
            drawing.stop()
        await draw(finished=True)

    async def _follow(self, url: str) -> None:
        client = self._make_client(url)
        try:
            async for health in background.follow_start(client, self.started):
                await self._show_health(health)
        finally:
            await client.aclose()

    async def _show_health(self, health: Health) -> None:
        stages = self.query_one(StageList)
        for engine in health.engines:
            for stage in engine.stages:
                await stages.show(stage)
        self.query_one(".note", Static).update(_note(health))

    def action_cancel(self) -> None:
        self._given_up.set()
        self.workers.cancel_node(self)
        self.post_message(self.Cancelled())


def _note(health: Health) -> str:
    """What a person who waits should know; empty where all is as usual."""
    if any(engine.state == "restarting" for engine in health.engines):
        return RESTARTING
    compiling = any(
        stage.stage in ("pack", "measure", "warm up") and not stage.finished and stage.seconds > COMPILING_SECONDS
        for engine in health.engines
        for stage in engine.stages
    )
    return COMPILING if compiling else ""
