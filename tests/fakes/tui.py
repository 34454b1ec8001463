"""What the TUI's tests share: a fake of the outside, and ways to drive the app to where it gets interesting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from textual.pilot import Pilot
from textual.screen import Screen

from app.background import ServerRecord, StartedServer
from app.tui.dependencies import Dependencies, ModelChoice, PeerInvite, PeersOutside
from app.tui.screens.chat import ChatScreen
from app.tui.widgets.prompt_input import PromptInput
from backend.errors import ShardwiseError
from pipeline_ext.peer_view import PeersView
from tests.fakes.wizard import WizardWorld

Answer = TypeVar("Answer")
CHOICES = (
    ModelChoice("starter", 93_000_000, False, "small, Apache-2.0"),
    ModelChoice("org/other", 1_400_000_000, True),
)


@dataclass
class Outside:
    """What the fake library and servers answer, changed by tests; `asked` is what the TUI wanted."""

    folder: Path
    running: ServerRecord | None = None
    start_error: ShardwiseError | None = None
    started_url: str = ""
    choices: tuple[ModelChoice, ...] = CHOICES
    progress: tuple[tuple[int, int], ...] = ((40_000_000, 93_000_000), (93_000_000, 93_000_000))
    asked: list[str] = field(default_factory=list)
    wizard: WizardWorld = field(default_factory=WizardWorld)
    peers: PeersView | ShardwiseError = field(default_factory=lambda: PeersView("none"))
    invite: PeerInvite | ShardwiseError = field(default_factory=lambda: PeerInvite("shardwise peers join X", "words"))

    def dependencies(self) -> Dependencies:
        return Dependencies(
            history=self.folder / "chats.sqlite3",
            preferences=self.folder / "tui.json",
            choices=lambda: self.choices,
            fetch=self._fetch,
            find=self._find,
            start=self._start,
            exports=self.folder,
            wizard=self.wizard.outside(),
            peers=PeersOutside(lambda: _given(self.peers), lambda: _given(self.invite), self._remove, self._obstacle),
        )

    def _obstacle(self) -> str:
        return str(self.invite) if isinstance(self.invite, ShardwiseError) else ""

    def _remove(self, peer: str, at_once: bool) -> None:
        self.asked.append(f"remove {peer}{' at once' if at_once else ''}")

    def _fetch(self, model: str, report: Callable[[int, int], None]) -> None:
        self.asked.append(f"fetch {model}")
        for done, total in self.progress:
            report(done, total)

    async def _find(self, model: str | None) -> ServerRecord | None:
        if self.running is None or (model is not None and model != self.running.model):
            return None
        return self.running

    def _start(self, model: str, options: tuple[str, ...]) -> StartedServer:
        self.asked.append(" ".join(("start", model, *options)))
        if self.start_error is not None:
            raise self.start_error
        return StartedServer(_Alive(), self.started_url, model, self.folder / "log")  # type: ignore[arg-type]


def _given(answer: Answer | ShardwiseError) -> Answer:
    """What the outside answers, or why it cannot."""
    if isinstance(answer, ShardwiseError):
        raise answer
    return answer


class _Alive:
    """A process that runs until it is told to end."""

    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.returncode = -15


async def until(pilot: Pilot, condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for a condition of the screen; fails where it does not come."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await pilot.pause(0.02)
    raise AssertionError("the condition did not come true")


async def on_screen(pilot: Pilot, kind: type[Screen]) -> Screen:
    await until(pilot, lambda: isinstance(pilot.app.screen, kind) and pilot.app.screen.is_mounted)
    await pilot.pause()
    return pilot.app.screen


async def chat_screen(pilot: Pilot) -> ChatScreen:
    await on_screen(pilot, ChatScreen)
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    return screen


async def say(pilot: Pilot, text: str, wait: bool = True) -> None:
    """Writes a message and sends it; waits for the whole answer unless told otherwise."""
    screen = await chat_screen(pilot)
    screen.query_one(PromptInput).text = text
    before = len(screen.conversation.entries)
    await pilot.press("enter")
    await until(pilot, lambda: len(screen.conversation.entries) >= before + 2)
    if wait:
        await until(pilot, lambda: not screen.answering)
        await pilot.pause()
