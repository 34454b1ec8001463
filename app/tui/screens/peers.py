"""PeersScreen: the machines that serve together, and which layers each one has; adding and removing them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from app.text_safety import clean_line
from app.tui.daemon_thread import in_daemon_thread
from app.tui.dependencies import PeersOutside
from app.tui.peers.look import PeersLook
from app.tui.peers.pipeline import pipelines
from app.tui.peers.words import ALONE, summary
from app.tui.screens.invite import InviteScreen
from app.tui.screens.question import QuestionScreen
from app.tui.server_words import trouble_in_words
from app.tui.widgets.peer_details import PeerDetails
from app.tui.widgets.peer_table import PeerTable
from app.tui.widgets.pipeline_view import PipelineView
from backend.errors import ShardwiseError
from pipeline_ext.peer_view import PeersView

LOOK_SECONDS = 1.0


class PeersScreen(Screen[None]):
    """Looks each second while it is shown. `manage` is None where the server is another machine's."""

    DEFAULT_CSS = """
    PeersScreen {
        & > .lead { height: auto; padding: 0 1; background: $panel; }
        & > .problem { height: auto; padding: 0 1; color: $text-warning; display: none; }
        & > VerticalScroll { height: 1fr; }
        .alone { height: auto; padding: 0 1; margin: 1 0 0 0; color: $text-muted; display: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "invite", "Invite", id="peers.invite", tooltip="Make a line that adds another machine"),
        Binding("r,delete", "remove", "Remove", id="peers.remove", tooltip="Let the highlighted machine go"),
        Binding("pageup", "scroll(-1)", show=False),
        Binding("pagedown", "scroll(1)", show=False),
        Binding("escape,q,f10", "app.pop_screen", "Back", id="peers.back", tooltip="Back to where you were"),
    ]
    HELP = """
# Machines

A model whose layers one machine has no room for can be divided: each machine computes some layers, one after the other.
`i` makes a line that turns another machine into a peer when it is pasted there.
The next `shardwise serve MODEL --pp auto` may use it; one that has no layers is a spare.
When a machine is lost, its layers go to a spare one, or to one with room; answers pause and go on.
`r` lets a machine go politely: its layers move first.
"""

    def __init__(self, look: Callable[[], Awaitable[PeersLook]], manage: PeersOutside | None) -> None:
        super().__init__()
        self._look_at, self._manage = look, manage

    def compose(self) -> ComposeResult:
        yield Static("asking for the machines...", classes="lead", markup=False)
        yield Static("", classes="problem", markup=False)
        with VerticalScroll(can_focus=False):
            yield PipelineView()
            yield PeerTable()
            yield Static(ALONE, classes="alone", markup=False)
            yield PeerDetails()
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(PeerTable).query_one("OptionList").focus()
        self.query_one(PeerDetails).show(None)
        self._look()
        self.set_interval(LOOK_SECONDS, self._look)

    @work(exclusive=True, group="look")
    async def _look(self) -> None:
        try:
            look = await self._look_at()
        except ShardwiseError as error:
            self._say(str(error))
            return
        self.query_one(".lead", Static).update(summary(look.view))
        self.query_one(PipelineView).show(pipelines(look.view, look.health))
        self.query_one(PeerTable).show(look.view)
        self._show_alone(look.view)
        # That nothing was added yet is no problem, and said in other words.
        problem = look.view.problem if look.view.state != "none" else ""
        self._say(problem or trouble_in_words(look.health))

    def _show_alone(self, view: PeersView) -> None:
        line = self.query_one(".alone", Static)
        line.display = len(view.peers) <= 1
        if line.display:
            line.update((self._manage and self._manage.obstacle()) or ALONE)

    def _say(self, problem: str) -> None:
        line = self.query_one(".problem", Static)
        line.display = bool(problem)
        line.update(problem)

    @on(PeerTable.Highlighted)
    def _highlighted(self, event: PeerTable.Highlighted) -> None:
        event.stop()
        self.query_one(PeerDetails).show(event.peer)

    def action_scroll(self, pages: int) -> None:
        whole = self.query_one(VerticalScroll)
        whole.scroll_relative(y=pages * whole.size.height, animate=False)

    @work(exclusive=True, group="manage")
    async def action_invite(self) -> None:
        if self._manage is None:
            self._elsewhere("shardwise peers invite")
            return
        try:
            invite = await in_daemon_thread(self._manage.invite)
        except ShardwiseError as error:
            self.notify(str(error), severity="warning", timeout=20, markup=False)
            return
        await self.app.push_screen(InviteScreen(invite))

    @work(exclusive=True, group="manage")
    async def action_remove(self) -> None:
        peer = self.query_one(PeerTable).highlighted
        if peer is None or not peer.id:
            self.notify("Choose another machine: this one cannot be removed.", markup=False)
            return
        if self._manage is None:
            self._elsewhere(f"shardwise peers remove {peer.name}")
            return
        name = clean_line(peer.name, 40)
        held = (
            "Its layers move to another machine first, answers pause meanwhile." if peer.stages else "It has no layers."
        )
        question = f"Remove {name}? {held} It can come back with a new invite only."
        answers = {"drain": "Remove", "now": "Remove at once"} if peer.stages else {"drain": "Remove"}
        answer = await self.app.push_screen_wait(QuestionScreen(question, answers))
        if answer is not None:
            await self._remove(self._manage, peer.id, name, answer == "now")

    async def _remove(self, manage: PeersOutside, peer: str, name: str, at_once: bool) -> None:
        try:
            await in_daemon_thread(lambda: manage.remove(peer, at_once))
        except ShardwiseError as error:
            self.notify(str(error), severity="warning", timeout=20, markup=False)
            return
        self.notify(f"{name} leaves." if not at_once else f"{name} is removed.", markup=False)
        self._look()

    def _elsewhere(self, command: str) -> None:
        self.notify(f"The server is another machine's. There, run:\n{command}", timeout=15, markup=False)
