"""The screen of the machines by keys alone: what it shows, adding and removing one, and where there are none."""

from __future__ import annotations

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from app.background import ServerRecord
from app.peers_view import read_peers
from app.tui.app import ShardwiseApp
from app.tui.dependencies import PeerInvite
from app.tui.screens.chat import ChatScreen
from app.tui.screens.invite import InviteScreen
from app.tui.screens.peers import PeersScreen
from app.tui.screens.question import QuestionScreen
from app.tui.screens.start import StartScreen
from app.tui.widgets.banner import Banner
from app.tui.widgets.peer_details import PeerDetails
from app.tui.widgets.peer_table import PeerTable
from app.tui.widgets.pipeline_view import PipelineView
from backend.errors import ShardwiseError
from pipeline_ext.extra import MissingExtraError
from pipeline_ext.peer_view import GpuView, PeersView, PeerView, PlacedStage
from tests.fakes.fake_server import FakeServer
from tests.fakes.tui import Outside, chat_screen, on_screen, until

GIB = 1 << 30
SIZES = pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=["80x24", "160x48"])
CARD = GpuView("NVIDIA GeForce RTX 4090", 24 * GIB, 21 * GIB)
HEAD = PeerView(
    "", "workbench", "10.77.0.1", "0.1.0", "alive", (CARD, CARD), 16, 64 * GIB, 40 * GIB,
    stages=(PlacedStage("fake/model", 0, 0, 20, 40),),
)  # fmt: skip
BETA = PeerView(
    "b3f1", "beta", "10.77.0.2", "0.1.0", "alive", (CARD,), 8, 32 * GIB, 25 * GIB, 0.00021, 1.17e9,
    (PlacedStage("fake/model", 1, 20, 31, 40),),
)  # fmt: skip
GAMMA = PeerView(
    "c990", "gamma", "10.77.0.3", "0.1.0", "silent", (), 2, 8 * GIB, 5 * GIB, 0.0204, 1.2e7,
    (PlacedStage("fake/model", 2, 31, 40, 40),), "not heard for 2 s",
)  # fmt: skip
SPARE = PeerView("d001", "spare-with-a-long-name", "10.77.0.4", "0.1.0", "alive", (), 2, 8 * GIB, 7 * GIB)
VIEW = PeersView("ready", "10.77.0.1:7070", peers=(HEAD, BETA, GAMMA, SPARE))
INVITE = PeerInvite(
    "shardwise peers join 10.77.0.1:7070/4fJ2mQ0vX9aLr7tYk1wZc3/9b1c2d3e4f5a69788796a5b4c3d2e1f0",
    "It is good for one machine, for 1 h. Whoever pastes it can run programs as you on this machine and its peers.",
)


def body(view: PeersView) -> dict:
    return msgspec.to_builtins(view)


def text_of(screen: PeersScreen, selector: str) -> str:
    return str(screen.query_one(selector, Static).render())


async def peers_screen(pilot: Pilot) -> PeersScreen:
    await pilot.press("f10")
    screen = await on_screen(pilot, PeersScreen)
    assert isinstance(screen, PeersScreen)
    await until(pilot, lambda: "asking" not in text_of(screen, ".lead"))
    return screen


@SIZES
def test_four_machines(snap_compare, outside: Outside, fake: FakeServer, size: tuple[int, int]) -> None:
    fake.peers = body(VIEW)
    outside.running = ServerRecord(1, fake.url, fake.model)

    async def run(pilot: Pilot) -> None:
        await chat_screen(pilot)
        screen = await peers_screen(pilot)
        await pilot.press("home", "down")
        await until(pilot, lambda: "beta" in str(screen.query_one(PeerDetails).render()))
        await pilot.pause(0.2)

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)


@SIZES
def test_alone(snap_compare, outside: Outside, fake: FakeServer, size: tuple[int, int]) -> None:
    head = msgspec.structs.replace(HEAD, stages=())
    fake.peers = body(PeersView("none", problem="No machine has been added.", peers=(head,)))
    outside.running = ServerRecord(1, fake.url, fake.model)

    async def run(pilot: Pilot) -> None:
        await chat_screen(pilot)
        await peers_screen(pilot)
        await pilot.pause(0.2)

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)


@SIZES
def test_an_invite(snap_compare, outside: Outside, fake: FakeServer, size: tuple[int, int]) -> None:
    fake.peers, outside.invite = body(VIEW), INVITE
    outside.running = ServerRecord(1, fake.url, fake.model)

    async def run(pilot: Pilot) -> None:
        await chat_screen(pilot)
        await peers_screen(pilot)
        await pilot.press("i")
        await on_screen(pilot, InviteScreen)
        pilot.app.clear_notifications()
        await pilot.pause(0.3)

    assert snap_compare(ShardwiseApp(outside.dependencies()), terminal_size=size, run_before=run)


async def test_the_picture_follows_what_the_engine_says_of_its_ranks(fake: FakeServer, outside: Outside) -> None:
    fake.peers = body(VIEW)
    outside.running = ServerRecord(1, fake.url, fake.model)
    async with ShardwiseApp(outside.dependencies()).run_test(size=(120, 40)) as pilot:
        await chat_screen(pilot)
        screen = await peers_screen(pilot)
        picture = screen.query_one(PipelineView)
        await until(pilot, lambda: "silent" in str(picture.render()))
        assert "layers 21 to 31" in str(picture.render())
        fake.trouble = "beta does not answer"
        fake.ranks = [
            {"rank": rank, "stage": rank, "peer": peer, "state": state}
            for rank, (peer, state) in enumerate([("", "ready"), ("d001", "lost"), ("c990", "ready")])
        ]
        await until(pilot, lambda: "being replaced" in str(picture.render()))
        assert "2 spare-with-a-…" in str(picture.render())
        assert "beta does not answer" in text_of(screen, ".problem")
        fake.trouble, fake.ranks = "", []
        fake.peers = body(PeersView("ready", "10.77.0.1:7070", peers=(HEAD, BETA)))
        await until(pilot, lambda: "2 machines" in text_of(screen, ".lead"))
        assert not screen.query_one(".problem").display


async def test_removing_asks_first_and_never_takes_this_machine(fake: FakeServer, outside: Outside) -> None:
    fake.peers = body(VIEW)
    outside.running = ServerRecord(1, fake.url, fake.model)
    async with ShardwiseApp(outside.dependencies()).run_test(size=(80, 24)) as pilot:
        await chat_screen(pilot)
        screen = await peers_screen(pilot)
        await pilot.press("home", "r")
        assert pilot.app.screen is screen
        await pilot.press("down", "r")
        question = await on_screen(pilot, QuestionScreen)
        assert "layers move" in str(question.query_one(Static).render())
        await pilot.press("escape")
        await on_screen(pilot, PeersScreen)
        assert outside.asked == []
        await pilot.press("r")
        await on_screen(pilot, QuestionScreen)
        await pilot.press("enter")
        await until(pilot, lambda: outside.asked == ["remove b3f1"])
        await on_screen(pilot, PeersScreen)
        await pilot.press("r")
        await on_screen(pilot, QuestionScreen)
        await pilot.press("right", "enter")
        await until(pilot, lambda: outside.asked[-1] == "remove b3f1 at once")


async def test_the_highlight_stays_with_its_machine(fake: FakeServer, outside: Outside) -> None:
    fake.peers = body(VIEW)
    outside.running = ServerRecord(1, fake.url, fake.model)
    async with ShardwiseApp(outside.dependencies()).run_test(size=(80, 24)) as pilot:
        await chat_screen(pilot)
        screen = await peers_screen(pilot)
        table = screen.query_one(PeerTable)
        await pilot.press("home", "down", "down")
        await until(pilot, lambda: table.highlighted == GAMMA)
        fake.peers = body(PeersView("ready", peers=(HEAD, GAMMA)))
        await until(pilot, lambda: table.query_one(OptionList).option_count == 2)
        assert table.highlighted == GAMMA
        fake.peers = body(PeersView("ready", peers=(HEAD,)))
        await until(pilot, lambda: table.query_one(OptionList).option_count == 1)
        assert table.highlighted == HEAD


async def test_an_invite_is_in_the_clipboard(fake: FakeServer, outside: Outside) -> None:
    fake.peers, outside.invite = body(VIEW), INVITE
    outside.running = ServerRecord(1, fake.url, fake.model)
    async with ShardwiseApp(outside.dependencies()).run_test(size=(80, 24)) as pilot:
        await chat_screen(pilot)
        await peers_screen(pilot)
        await pilot.press("i")
        await on_screen(pilot, InviteScreen)
        assert pilot.app.clipboard == INVITE.line
        await pilot.press("enter")
        await on_screen(pilot, PeersScreen)
        await pilot.press("f10")
        await on_screen(pilot, ChatScreen)


async def test_without_the_extra_it_says_how_to_install_it_before_a_server_runs(outside: Outside) -> None:
    missing = MissingExtraError("Peers need packages that are not installed", "", 'pip install "shardwise[peers]"')
    outside.invite = missing
    async with ShardwiseApp(outside.dependencies()).run_test(size=(80, 24)) as pilot:
        await on_screen(pilot, StartScreen)
        await pilot.press("f10")
        screen = await on_screen(pilot, PeersScreen)
        await until(pilot, lambda: "shardwise[peers]" in str(screen.query_one(".alone", Static).render()))
        await pilot.press("i")
        await pilot.pause(0.2)
        assert pilot.app.screen is screen
        await pilot.press("escape")
        await on_screen(pilot, StartScreen)


async def test_a_server_elsewhere_is_shown_and_left_alone(connected: ShardwiseApp, fake: FakeServer) -> None:
    fake.peers = body(VIEW)
    async with connected.run_test(size=(80, 24)) as pilot:
        await chat_screen(pilot)
        screen = await peers_screen(pilot)
        await pilot.press("i")
        await pilot.press("home", "down", "r")
        await pilot.pause(0.2)
        assert pilot.app.screen is screen


async def test_an_older_server_has_no_machines_to_show(connected: ShardwiseApp) -> None:
    async with connected.run_test(size=(80, 24)) as pilot:
        await chat_screen(pilot)
        await pilot.press("f10")
        screen = await on_screen(pilot, PeersScreen)
        await until(pilot, lambda: bool(screen.query_one(".problem").display))


async def test_the_chat_says_that_a_machine_was_lost_until_it_is_mended(
    connected: ShardwiseApp, fake: FakeServer
) -> None:
    async with connected.run_test(size=(80, 24)) as pilot:
        screen = await chat_screen(pilot)
        fake.trouble = "beta does not answer"
        banner = screen.query_one(Banner)
        await until(pilot, lambda: banner.text == "A machine was lost, going on in a moment: beta does not answer")
        fake.trouble = ""
        await until(pilot, lambda: banner.text == "")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"peers":[]}', b'{"state":"ready","peers":[{"id":"x"}]}'])
def test_nonsense_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_peers(content)


def test_names_cannot_steer_the_terminal() -> None:
    view = msgspec.structs.replace(VIEW, peers=(msgspec.structs.replace(BETA, name="\x1b[2Jbeta\n"),))
    assert read_peers(msgspec.json.encode(view)).peers[0].name == "beta"


def test_more_machines_than_anybody_has_are_refused() -> None:
    with pytest.raises(ValueError, match="1001 machines"):
        read_peers(msgspec.json.encode(PeersView("ready", peers=(SPARE,) * 1001)))


async def test_a_hub_that_cannot_be_asked_is_said(outside: Outside) -> None:
    outside.peers = ShardwiseError("The hub does not answer", "Why.", "Hint.")
    async with ShardwiseApp(outside.dependencies()).run_test(size=(80, 24)) as pilot:
        await on_screen(pilot, StartScreen)
        await pilot.press("f10")
        screen = await on_screen(pilot, PeersScreen)
        await until(pilot, lambda: "does not answer" in str(screen.query_one(".problem", Static).render()))
