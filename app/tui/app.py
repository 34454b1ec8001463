"""ShardwiseApp: the terminal UI as a client of a server; it moves between the screens. Screens own what they show."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from textual import on, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from app import background
from app.client import ModelInfo, ServerUnreachableError, ShardwiseClient
from app.settings import client_key
from app.text_safety import clean_line
from app.tui import dependencies as outside
from app.tui import preferences
from app.tui.asides import cache_of, memory_of, peers_here, peers_of
from app.tui.conversation import HistoryStore
from app.tui.dependencies import Dependencies
from app.tui.fit.wishes import Wishes
from app.tui.palette import chat_commands
from app.tui.plan_asked import PlanAsked
from app.tui.screens.chat import ChatScreen
from app.tui.screens.error import ErrorScreen
from app.tui.screens.help import HelpScreen
from app.tui.screens.logs import LogsScreen
from app.tui.screens.peers import PeersScreen
from app.tui.screens.question import QuestionScreen
from app.tui.screens.start import StartScreen
from app.tui.screens.startup import StartupScreen
from app.tui.screens.wizard import WizardScreen
from app.tui.server_words import state_in_words
from app.tui.theme import SHARDWISE
from backend.errors import ShardwiseError

WATCH_SECONDS = 2.0
LOST_SECONDS = 1.0


class ShardwiseApp(App[None]):
    """Attaches to `connect`, or to a running server, or offers models to start one with."""

    TITLE = "shardwise"
    PAUSE_GC_ON_SCROLL = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="app.help", tooltip="Show what the keys do here"),
        Binding("f9", "logs", "Log", id="app.logs", tooltip="Follow the server's log", show=False),
        Binding("f10", "peers", "Machines", id="app.peers", tooltip="The machines that serve together", show=False),
        Binding("ctrl+o", "choose_model", "Model", id="app.model", tooltip="Choose another model"),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", tooltip="Leave; the server goes on", priority=True),
    ]

    def __init__(
        self,
        dependencies: Dependencies,
        connect: str | None = None,
        key: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__()
        self._dependencies = dependencies
        self._connect = connect
        self._key = key
        self._wanted_model = model
        # Of a plan that was chosen; None where a model is started without one.
        self._wanted_options: tuple[str, ...] | None = None
        self._wishes = Wishes()
        self._store = HistoryStore(dependencies.history)
        self.preferences = preferences.load(dependencies.preferences)
        self.url: str | None = None
        self.register_theme(SHARDWISE)
        if self.preferences.theme in self.available_themes:
            self.theme = self.preferences.theme

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, lambda theme: self._remember(theme=theme.name))
        problem = self._store.problem
        if problem is not None:
            self.notify(str(problem), title="Chat history", severity="warning", timeout=15, markup=False)
        self._enter()

    # Ways in -----------------------------------------------------------------------------------------------------

    @work(exclusive=True, group="flow")
    async def _enter(self) -> None:
        """The first screen: the chat where a server runs, else the choice of a model."""
        try:
            if self._connect is not None:
                await self._attach_to(self._connect)
                return
            record = await self._dependencies.find(self._wanted_model)
            if record is not None:
                await self._attach_to(record.url)
            elif self._wanted_model is not None:
                await self._show(self._startup(self._wanted_model, options=self._wanted_options or ()))
            else:
                await self._show(StartScreen(self._dependencies, self.preferences.model))
        except ShardwiseError as error:
            await self._show(ErrorScreen(error, self._connect is None))

    async def _attach_to(self, url: str) -> None:
        """Chats with the server at `url`, after watching it start where it is still starting."""
        client = self._make_client(url)
        try:
            health = await client.health()
            models = await client.models() if health.ready else None
            if models is not None and not models:
                raise ServerUnreachableError(f"{client.url} serves no model")
        except ShardwiseError:
            await client.aclose()
            raise
        self.url = client.url
        if models is None:
            await client.aclose()
            name = health.engines[0].model if health.engines else "the server"
            await self._show(self._startup(name, client.url))
            return
        await self._chat(client, models[0])

    async def _chat(self, client: ShardwiseClient, model: ModelInfo) -> None:
        """Shows the chat; one that is below other screens goes on with this server and keeps its text."""
        existing = self._chat_screen
        if existing is not None:
            while self.screen is not existing:
                await self.pop_screen()
            await existing.client.aclose()
            existing.use(client, model)
            existing.show_server("")
        else:
            screen = ChatScreen(client, model, self._store, self._dependencies)
            screen.begin_with(self.preferences.system, self.preferences.sampling)
            await self._show(screen)
        self._watch()

    @property
    def _chat_screen(self) -> ChatScreen | None:
        return next((each for each in self.screen_stack if isinstance(each, ChatScreen)), None)

    def _make_client(self, url: str) -> ShardwiseClient:
        return ShardwiseClient(url, self._key)

    def _startup(self, model: str, url: str | None = None, options: tuple[str, ...] = ()) -> StartupScreen:
        return StartupScreen(self._dependencies, self._make_client, model, url, options)

    async def _show(self, screen: Screen) -> None:
        """Replaces the screen on top, but never the chat, which waits below; the wizard goes."""
        while isinstance(self.screen, WizardScreen):
            await self.pop_screen()
        if isinstance(self.screen, StartScreen | StartupScreen | ErrorScreen):
            await self.switch_screen(screen)
        else:
            await self.push_screen(screen)

    # What screens ask for ----------------------------------------------------------------------------------------

    @on(StartScreen.Chosen)
    def _chosen(self, event: StartScreen.Chosen) -> None:
        self._begin(event.model)

    @on(PlanAsked)
    def _planned(self, event: PlanAsked) -> None:
        self.plan_for(event.model)

    @on(WizardScreen.Use)
    def _use_plan(self, event: WizardScreen.Use) -> None:
        if self._connect is not None:
            command = " ".join(("shardwise serve", event.model, *event.options))
            self.notify(f"This window stays with {self._connect}. On this machine, run:\n{command}", markup=False)
            return
        self._begin(event.model, event.options)

    @on(WizardScreen.Wished)
    def _wished(self, event: WizardScreen.Wished) -> None:
        self._wishes = event.wishes

    def plan_for(self, model: str) -> None:
        """Opens the wizard as it was left, for this model where one is named."""
        self._wishes = replace(self._wishes, model=model or self._wishes.model)
        self.push_screen(WizardScreen(self._dependencies.wizard, self._wishes))

    @work(exclusive=True, group="flow")
    async def _begin(self, model: str, options: tuple[str, ...] | None = None) -> None:
        """Starts a model, or attaches to a server that has it; asks what to do with the one in use.

        With a plan's `options`, a server that has the model is not enough: it may have been started otherwise.
        """
        try:
            running = await self._dependencies.find(model) if options is None else None
            if running is not None:
                await self._attach_to(running.url)
                return
            if not await self._make_room(model):
                return
            self._wanted_options = options
            await self._show(self._startup(model, options=options or ()))
        except ShardwiseError as error:
            await self._show(ErrorScreen(error))

    async def _make_room(self, model: str) -> bool:
        """Asks whether the server in use is to go first; False when the user would rather not go on."""
        record = await self._dependencies.find(None)
        if record is None:
            return True
        answer = await self.push_screen_wait(
            QuestionScreen(
                f"{clean_line(record.model, 60)} is still being served. "
                f"Stop it before starting {clean_line(model, 60)}? That frees its memory and cuts off its other users.",
                {"stop": "Stop it", "keep": "Keep both"},
            )
        )
        if answer == "stop":
            await self._stop_watching()
            await background.stop_server(record.pid)
        return answer is not None

    @on(StartupScreen.Ready)
    def _server_ready(self, event: StartupScreen.Ready) -> None:
        self._remember(model=event.model)
        self._go_to(event.url, self._wanted_options is not None)

    @work(exclusive=True, group="flow")
    async def _go_to(self, url: str, planned: bool) -> None:
        """Chats with a server that has come up; one that a plan was chosen for says how the plan's memory came out."""
        try:
            await self._attach_to(url)
        except ShardwiseError as error:
            await self._show(ErrorScreen(error))
            return
        if planned and self._chat_screen is not None and (memory := await memory_of(self._chat_screen.client)):
            self.notify(f"{memory}\nF7 shows every term.", title="Memory", timeout=8, markup=False)

    @on(StartupScreen.Failed)
    async def _failed(self, event: StartupScreen.Failed) -> None:
        self._wanted_model = event.model if self._connect is None else None
        await self._show(ErrorScreen(event.error, self._connect is None))

    @on(StartupScreen.Cancelled)
    async def _cancelled(self, event: StartupScreen.Cancelled) -> None:
        started = self.screen.started if isinstance(self.screen, StartupScreen) else None
        if started is not None:
            started.process.terminate()
        await self._show(StartScreen(self._dependencies, self.preferences.model))

    @on(ErrorScreen.Asked)
    async def _asked(self, event: ErrorScreen.Asked) -> None:
        if event.action == "retry":
            self._enter()
        elif event.action == "choose":
            self._wanted_model, self._wanted_options = None, None
            await self._show(StartScreen(self._dependencies, self.preferences.model))
        else:
            await self.action_quit()

    @on(ChatScreen.SamplingChanged)
    def _sampling_changed(self, event: ChatScreen.SamplingChanged) -> None:
        self._remember(system=event.system, sampling=event.sampling)

    def _remember(self, **changes: object) -> None:
        changed = replace(self.preferences, **changes)  # type: ignore[arg-type]
        if changed == self.preferences:
            return
        self.preferences = changed
        try:
            preferences.save(self._dependencies.preferences, changed)
        except OSError as error:
            self.notify(f"Settings are not remembered: {error}", severity="warning", markup=False)

    # Watching the server -----------------------------------------------------------------------------------------

    @work(exclusive=True, group="watch")
    async def _watch(self) -> None:
        """Looks after the server while the chat lives: says when it is lost, and goes on when it is back."""
        lost = False
        while (screen := self._chat_screen) is not None:
            try:
                health = await screen.client.health()
            except ShardwiseError as error:
                lost = True
                screen.show_server(f"{error.what}. Trying again; ctrl+o starts a model here, F9 shows the log.")
                await self._find_again(screen)
            else:
                if lost and health.ready:
                    lost = not await self._refresh_model(screen)
                screen.show_server(state_in_words(health), health.fallback)
                screen.show_cache(await cache_of(screen.client))
            await asyncio.sleep(LOST_SECONDS if lost else WATCH_SECONDS)

    async def _refresh_model(self, screen: ChatScreen) -> bool:
        """Takes up what the returned server serves now; False where it is gone again."""
        try:
            models = await screen.client.models()
        except ShardwiseError:
            return False
        if models:
            screen.use(screen.client, models[0])
        return bool(models)

    async def _find_again(self, screen: ChatScreen) -> None:
        """A server that came back may answer on another port."""
        if self._connect is not None or screen.answering:
            return
        record = await self._dependencies.find(screen.model.id)
        if record is None or record.url == screen.client.url:
            return
        old, client = screen.client, self._make_client(record.url)
        screen.use(client, screen.model)
        self.url = client.url
        await old.aclose()

    async def _stop_watching(self) -> None:
        self.workers.cancel_group(self, "watch")

    # Actions -----------------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "choose_model":
            return self._connect is None and isinstance(self.screen, ChatScreen)
        return True

    def action_help(self) -> None:
        self.push_screen(HelpScreen(self.screen))

    def action_logs(self) -> None:
        if isinstance(self.screen, LogsScreen):
            return
        started = self.screen.started if isinstance(self.screen, StartupScreen) else None
        self.push_screen(LogsScreen(started.log if started else self._log_path()))

    def action_peers(self) -> None:
        """What the server says of its machines; without one, what this machine's hub says."""
        screen = self._chat_screen
        outside = self._dependencies.peers
        if isinstance(self.screen, PeersScreen):
            return
        look = partial(peers_of, screen.client) if screen else partial(peers_here, outside)
        self.push_screen(PeersScreen(look, outside if self._connect is None else None))

    def _log_path(self) -> Path | None:
        local = self.url is not None and urlsplit(self.url).hostname in ("127.0.0.1", "localhost")
        return background.log_of(self.url) if local and self.url else None

    async def action_choose_model(self) -> None:
        if isinstance(self.screen, ChatScreen):
            await self._show(StartScreen(self._dependencies, self.preferences.model))

    @work(exclusive=True, group="flow")
    async def action_stop_server(self) -> None:
        """Stops the background server after asking; the chat stays, the banner says what happened."""
        records = [each for each in background.running_servers() if each.url == self.url]
        if not records:
            self.notify("The server runs elsewhere; stop it where it was started.", markup=False)
            return
        question = QuestionScreen(f"Stop the server at {self.url}?", {"stop": "Stop it"})
        if await self.push_screen_wait(question) == "stop":
            ended = await background.stop_server(records[0].pid)
            self.notify("The server has stopped." if ended else "The server is still ending.", markup=False)

    async def action_quit(self) -> None:
        screen = self._chat_screen
        if screen is not None:
            await screen.finish_answer()
        if isinstance(self.screen, StartupScreen) and self.screen.started is not None:
            self.url = self.screen.url
        self.exit()

    async def on_unmount(self) -> None:
        self._store.close()

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        """Everything the keys do, and what has no key, for the command palette."""
        yield from super().get_system_commands(screen)
        yield SystemCommand("Log", "Follow the server's log", self.action_logs)
        yield SystemCommand("Machines", "The machines that serve together; add and remove some", self.action_peers)
        if isinstance(screen, ChatScreen):
            yield from chat_commands(screen)
        if self._connect is None:
            yield SystemCommand("Choose model", "Start or attach to another model", self.action_choose_model)
            yield SystemCommand("Stop server", "Stop the background server", self.action_stop_server)


def run(connect: str | None = None, key: str | None = None, model: str | None = None) -> int:
    """Opens the terminal UI and returns the exit status when the user leaves it.

    `connect`: the URL of a server to use instead of one of this machine; `key`: its API key (default:
    SHARDWISE_API_KEY); `model`: a model to start, or to attach to where it is served already, without asking.

    Raises:
        ShardwiseError: there is no terminal to draw on.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ShardwiseError(
            "The terminal app needs a terminal",
            "Its input or output is a pipe or a file.",
            'In a pipe, use plain chat: echo "hi" | shardwise chat starter',
        )
    key = key or client_key()
    app = ShardwiseApp(outside.of_this_machine(key), connect, key, model)
    app.run()
    if any(record.url == app.url for record in background.running_servers()):
        print(f"server still running at {app.url}; stop it with `shardwise stop`")
    return app.return_code or 0
