"""The hub's Unix socket, and what the hub decides of peers: everything but Ray."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from backend.errors import ShardwiseError
from backend.frames import framed, receive_frame
from pipeline_ext.agent import Agent, HeadPlace, NotWelcomeError
from pipeline_ext.cluster import SpawnError, SpawnOrder
from pipeline_ext.hub_cluster import HubCluster
from pipeline_ext.hub_control import (
    AskPeers,
    Counted,
    HubClient,
    HubRefusalError,
    MakeInvite,
    NoHubError,
    RemovePeer,
    RevokeInvites,
    encoder,
)
from pipeline_ext.hub_process import locked
from pipeline_ext.hub_start import HubStartError
from pipeline_ext.joining import join
from pipeline_ext.peer import Peer
from tests.pipeline_ext.hubs import RunningHub, plain_machine, running_hub


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


class RunningAgent:
    """An agent in a thread."""

    def __init__(self, folder: Path, hub: RunningHub, name: str = "peer") -> None:
        self.identity, _ = join(hub.invite(), name, folder)
        self.said: list[str] = []
        self.failure: ShardwiseError | None = None
        self._place = HeadPlace("127.0.0.1", hub.port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._agent: Agent | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._agent = Agent(self.identity, self._place, self.said.append, plain_machine)
        try:
            await self._agent.run()
        except ShardwiseError as error:
            self.failure = error

    def leave(self) -> None:
        assert self._loop is not None
        assert self._agent is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._agent.leave)

    def ended(self, seconds: float = 10.0) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


@contextmanager
def running_agent(folder: Path, hub: RunningHub) -> Iterator[RunningAgent]:
    agent = RunningAgent(folder, hub)
    try:
        yield agent
    finally:
        agent.leave()
        agent.leave()
        assert agent.ended()


class Local:
    """The head's own processes."""

    address = ""

    def __init__(self) -> None:
        self.spawned: list[SpawnOrder] = []
        self.killed: list[tuple[str, ...]] = []
        self.closed = False

    def peers(self) -> tuple[Peer, ...]:
        return ()

    def spawn(self, peer: str, order: SpawnOrder) -> None:
        self.spawned.append(order)

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        self.killed.append(workers)

    def released(self, peer: str) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def health(hub: RunningHub) -> list[str]:
    return [peer.health for peer in hub.client.news().peers[1:]]


def raw(hub: RunningHub, data: bytes) -> bytes | None:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(str(hub.control))
        line.sendall(data)
        with contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_WR)
        try:
            return receive_frame(line)
        except (OSError, ValueError):
            return None


def test_the_socket_is_its_users_own(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        assert hub.control.stat().st_mode & 0o777 == 0o600
    assert not hub.control.exists()
    with pytest.raises(NoHubError):
        hub.client.news()


def test_who_is_asked_is_checked_to_be_this_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(tmp_path) as hub:
        monkeypatch.setattr("pipeline_ext.hub_control.os.geteuid", lambda: 12345)
        with pytest.raises(NoHubError, match="not a socket of this user"):
            hub.client.news()


def test_another_user_gets_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(tmp_path) as hub:
        monkeypatch.setattr("pipeline_ext.hub_socket.struct.unpack", lambda form, data: (1, 12345, 12345))
        assert raw(hub, framed(encoder.encode(AskPeers()))) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",
        b"\xff\xff\xff\xff" + b"x" * 100,
        framed(b""),
        framed(b"\xc1"),
        framed(b"\x91" * 50000),
        framed(msgspec.msgpack.encode(["Nothing"])),
        framed(msgspec.msgpack.encode(["MakeInvite", -1.0, 1])),
        framed(msgspec.msgpack.encode(["MakeInvite", 1e12, 1])),
        framed(msgspec.msgpack.encode(["MakeInvite", 60.0, 10**9])),
        framed(msgspec.msgpack.encode(["Kill", "e", "p", ["w"] * 300])),
        framed(msgspec.msgpack.encode(["Spawn", "e", "p", b"x" * 70000])),
        framed(msgspec.msgpack.encode(["News"])),
    ],
)
def test_bad_frames_get_no_answer_and_hurt_nobody(tmp_path: Path, data: bytes) -> None:
    with running_hub(tmp_path) as hub:
        assert raw(hub, data) is None
        assert hub.client.news().peers[0].id == ""


def test_invites_are_made_listed_and_taken_back(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        hub.invite(uses=3)
        (told,) = hub.client.news().invites
        assert told.uses == 3
        assert hub.client.ask(RevokeInvites(told.name)) == Counted(1)
        assert hub.client.news().invites == ()


def test_a_peer_beats_is_measured_and_falls_silent(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        with running_agent(tmp_path / "peer", hub) as agent:
            assert eventually(lambda: health(hub) == ["alive"])
            assert eventually(lambda: hub.client.news().peers[1].link is not None)
            (peer,) = hub.client.news().peers[1:]
            assert peer.link is not None
            assert 0 < peer.link.latency < 1
            assert peer.link.bandwidth > 1e6
            assert (peer.id, peer.name, peer.address) == (agent.identity.id, "peer", "127.0.0.1")
        assert eventually(lambda: health(hub) in (["silent"], ["lost"]))


def test_a_restarted_hub_knows_its_peers_and_they_come_by_themselves(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        agent = RunningAgent(tmp_path / "peer", hub)
        assert eventually(lambda: health(hub) == ["alive"])
        port = hub.port
    try:
        with running_hub(tmp_path, port) as hub:
            assert [peer.id for peer in hub.client.news().peers] == ["", agent.identity.id]
            assert eventually(lambda: health(hub) == ["alive"])
            assert any("is away" in line for line in agent.said)
    finally:
        agent.leave()
        agent.leave()
        assert agent.ended()


def test_a_leaving_peer_waits_for_engines_that_use_it(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub, running_agent(tmp_path / "peer", hub) as agent:
        assert eventually(lambda: health(hub) == ["alive"])
        cluster = HubCluster(Local(), HubClient(hub.control))
        cluster.spawn(agent.identity.id, SpawnOrder(("w",), "d", b"s"))
        agent.leave()
        assert eventually(lambda: cluster.peers()[1].health == "leaving")
        assert not agent.ended(1.0)
        cluster.released(agent.identity.id)
        assert agent.ended()
        assert agent.failure is None
        cluster.close()


def test_a_hub_that_comes_later_is_told_which_peers_an_engine_uses(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        agent = RunningAgent(tmp_path / "peer", hub)
        assert eventually(lambda: health(hub) == ["alive"])
        cluster = HubCluster(Local(), HubClient(hub.control))
        cluster.spawn(agent.identity.id, SpawnOrder(("w",), "d", b"s"))
        port = hub.port
    with running_hub(tmp_path, port) as later:
        assert eventually(lambda: later.hub._engines != {} and health(later) == ["alive"])
        agent.leave()
        assert not agent.ended(0.7)
        cluster.released(agent.identity.id)
        assert agent.ended()
        cluster.close()


def test_an_engine_that_died_keeps_no_peer(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub, running_agent(tmp_path / "peer", hub) as agent:
        assert eventually(lambda: health(hub) == ["alive"])
        line = hub.client.subscribe("engine")
        assert eventually(lambda: "engine" in hub.hub._engines)
        hub.loop.call_soon_threadsafe(lambda: hub.hub._engines["engine"].add(agent.identity.id))
        agent.leave()
        assert not agent.ended(0.5)
        line.close()
        assert agent.ended()


def test_a_removed_peer_is_told_and_rays_token_is_changed(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub, running_agent(tmp_path / "peer", hub) as agent:
        assert eventually(lambda: health(hub) == ["alive"])
        with pytest.raises(HubRefusalError, match="no peer other"):
            hub.client.ask(RemovePeer("other", False))
        hub.client.ask(RemovePeer("peer", False))
        assert agent.ended()
        assert isinstance(agent.failure, NotWelcomeError)
        assert health(hub) == []
        assert hub.ray.renewed == 1


def test_a_peer_that_engines_use_is_removed_at_once_where_that_is_asked_for(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub, running_agent(tmp_path / "peer", hub) as agent:
        assert eventually(lambda: health(hub) == ["alive"])
        cluster = HubCluster(Local(), HubClient(hub.control))
        cluster.spawn(agent.identity.id, SpawnOrder(("w",), "d", b"s"))
        hub.client.ask(RemovePeer("peer", False))
        assert not agent.ended(0.7)
        hub.client.ask(RemovePeer("peer", True))
        assert agent.ended()
        cluster.close()


def test_the_cluster_spawns_here_itself_and_there_through_the_hub(tmp_path: Path) -> None:
    local, order = Local(), SpawnOrder(("w1", "w2"), "d", b"s", (("A", "1"),))
    with running_hub(tmp_path) as hub, running_agent(tmp_path / "peer", hub) as agent:
        assert eventually(lambda: health(hub) == ["alive"])
        cluster = HubCluster(local, HubClient(hub.control))
        assert cluster.address == "127.0.0.1"
        assert [peer.id for peer in cluster.peers()] == ["", agent.identity.id]
        cluster.spawn("", order)
        cluster.kill("", ("w1",))
        assert (local.spawned, local.killed) == ([order], [("w1",)])
        cluster.spawn(agent.identity.id, order)
        ((peer, encoded),) = hub.ray.spawned
        assert (peer, msgspec.msgpack.decode(encoded, type=SpawnOrder)) == (agent.identity.id, order)
        cluster.kill(agent.identity.id, ("w1",))
        assert hub.ray.killed == [(agent.identity.id, ("w1",))]
        with pytest.raises(SpawnError, match="no such peer"):
            cluster.spawn("nobody", order)
        hub.ray.refusal = "Ray does not reach it"
        with pytest.raises(SpawnError, match="Ray does not reach it"):
            cluster.spawn(agent.identity.id, order)
        cluster.close()
        assert (agent.identity.id, ("w2", "w1", "w2")) in hub.ray.killed
        assert local.closed


def test_without_a_hub_the_peers_are_the_last_known(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub, running_agent(tmp_path / "peer", hub) as agent:
        assert eventually(lambda: health(hub) == ["alive"])
        cluster = HubCluster(Local(), HubClient(hub.control))
    assert [peer.id for peer in cluster.peers()] == ["", agent.identity.id]
    with pytest.raises(SpawnError, match="does not answer"):
        cluster.spawn(agent.identity.id, SpawnOrder(("w",), "d", b"s"))
    cluster.kill(agent.identity.id, ("w",))
    cluster.released(agent.identity.id)
    cluster.close()
    from pipeline_ext.peer_table import read_known

    later = HubCluster(Local(), HubClient(hub.control), lambda: read_known(tmp_path / "head" / "peers.json"))
    assert [(peer.id, peer.health) for peer in later.peers()] == [("", "alive"), (agent.identity.id, "lost")]
    later.close()


def test_a_user_has_one_hub(tmp_path: Path) -> None:
    held = locked(tmp_path / "run" / "hub.lock")
    with pytest.raises(HubStartError, match="running already"):
        locked(tmp_path / "run" / "hub.lock")
    os.close(held)
    os.close(locked(tmp_path / "run" / "hub.lock"))


def test_questions_are_answered_while_a_subscriber_does_not_read(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        line = hub.client.subscribe("deaf")
        for _ in range(50):
            hub.client.ask(MakeInvite(60, 1))
        assert len(hub.client.news().invites) == 50
        line.close()
