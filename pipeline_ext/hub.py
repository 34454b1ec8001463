"""Hub: what the head knows of its peers, and decides about them: one process a user, in the background.

It puts door, socket, table, invites and Ray together. Where stages go is the engines' to decide.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from backend.hardware.machine import Machine, read_machine
from pipeline_ext.hub_control import (
    Answer,
    AskPeers,
    Counted,
    Done,
    HubRefusalError,
    Invited,
    Kill,
    MakeInvite,
    News,
    PeerNote,
    Question,
    ReleasePeer,
    RemovePeer,
    RevokeInvites,
    Spawn,
    StopHub,
    Subscribe,
)
from pipeline_ext.hub_door import HubDoor
from pipeline_ext.hub_socket import HubSocket
from pipeline_ext.identity import Identity, fingerprint
from pipeline_ext.invites import InviteLine, Invites
from pipeline_ext.own_version import own_version
from pipeline_ext.peer import Peer
from pipeline_ext.peer_table import PeerTable
from pipeline_ext.ray_cluster import OrderError, RayCluster

NEWS_SECONDS = 3.0
MACHINE_SECONDS = 10.0
TICK_SECONDS = 0.5
# How long engines may take to do without a peer that is to be removed.
REMOVE_SECONDS = 300.0

log = structlog.get_logger("shardwise.hub")


class Hub:
    """Made on its event loop.

    Args:
        listener: bound to the chosen address, not yet listening.
        control: the path of the Unix socket.
        read, make_ray: how this machine is read, and its Ray kept; tests put others in their place.
        measure: reads it once, and takes its time.
    """

    def __init__(
        self,
        listener: socket.socket,
        head: Identity,
        control: Path,
        read: Callable[[], Machine] = read_machine,
        make_ray: Callable[[str, Callable[[], None]], RayCluster] = RayCluster,
        measure: Callable[[], Machine] | None = None,
    ) -> None:
        self._head, self._read, self._measure = head, read, measure
        self._address, self._port = listener.getsockname()[:2]
        loop = asyncio.get_running_loop()
        self._changed, self._ended = asyncio.Event(), asyncio.Event()
        self.opened = asyncio.Event()
        self.invites = Invites(loop.time)
        self.table = PeerTable(head.folder / "peers.json")
        self.ray = make_ray(self._address, self._changed.set)
        self._door = HubDoor(listener, head, self.table, self.invites, self._changed)
        self._socket = HubSocket(control, self._answer, self._news, self._subscribed)
        self._engines: dict[str, set[str]] = {}  # by id: peers on which it has processes
        self._removing: dict[str, float] = {}  # peers, and until when engines may keep them
        self._machine = read()

    async def run(self) -> None:
        """Until `stop`."""
        await self._door.open()
        await self._socket.open()
        self.opened.set()
        self.ray.start()
        beside = [asyncio.create_task(each()) for each in (self._follow, self._tick, self._read_machine)]
        try:
            await self._ended.wait()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._door.close()
            await self.ray.stop()
            await self._socket.close()

    def stop(self) -> None:
        self._ended.set()

    async def _answer(self, question: Question) -> Answer:
        match question:
            case MakeInvite(seconds, uses):
                return self._invite(seconds, uses)
            case RevokeInvites(name):
                return Counted(self.invites.revoke(name))
            case AskPeers():
                return self._news()
            case RemovePeer(name, at_once):
                return self._remove(name, at_once)
            case Spawn():
                return await self._spawn(question)
            case Kill():
                await self._kill(question)
                return Done()
            case ReleasePeer(engine, peer):
                self._engines.get(engine, set()).discard(peer)
                self._changed.set()
                return Done()
            case StopHub():
                asyncio.get_running_loop().call_later(0.1, self.stop)
                return Done()
            case Subscribe():
                raise HubRefusalError("News are told on a line of their own")

    def _invite(self, seconds: float, uses: int) -> Invited:
        name, token = self.invites.make(seconds, uses)
        authority = fingerprint(self._head.authority.read_bytes())
        line = InviteLine(self._address, self._port, authority, token, own_version())
        return Invited(name, line.text(), self.ray.ports)

    def _remove(self, name: str, at_once: bool) -> Done:
        peer = self.table.find(name)
        if peer is None:
            known = ", ".join(each.name for each in self.table.peers()) or "none"
            raise HubRefusalError(f"There is no peer {name}", f"Known are: {known}.", "See shardwise peers list.")
        seconds = 0.0 if at_once else REMOVE_SECONDS
        self._removing[peer] = asyncio.get_running_loop().time() + seconds
        self.table.leaving(peer)
        self._changed.set()
        return Done()

    async def _spawn(self, asked: Spawn) -> Done:
        if asked.peer not in self.table:
            raise HubRefusalError("There is no such peer")
        try:
            await self.ray.spawn(asked.peer, asked.order)
        except OrderError as error:
            raise HubRefusalError(f"Nothing could be started on {self.table.name(asked.peer)}", f"{error}.") from None
        # An engine that does not listen to news is not waited for when the peer leaves.
        self._engines.get(asked.engine, set()).add(asked.peer)
        return Done()

    async def _kill(self, asked: Kill) -> None:
        try:
            await self.ray.kill(asked.peer, asked.workers)
        except OrderError as error:
            raise HubRefusalError("They could not be reached", f"{error}.") from None

    def _subscribed(self, engine: str, peers: tuple[str, ...] | None) -> None:
        if peers is not None:
            self._engines.setdefault(engine, set()).update(peers)
        else:
            self._engines.pop(engine, None)
        self._changed.set()

    async def _follow(self) -> None:
        """After each change, and now and then: tells who has to know, and lets go who may go."""
        while True:
            try:
                async with asyncio.timeout(NEWS_SECONDS if not self._removing else 0.5):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            self._door.tell_ray(self.ray.entry)
            self._let_go()
            self._socket.publish()
            await asyncio.sleep(0.05)

    def _let_go(self) -> None:
        """Leaving peers that no engine has processes on."""
        now = asyncio.get_running_loop().time()
        needed = {peer for peers in self._engines.values() for peer in peers}
        for peer, until in list(self._removing.items()):
            gone = not self._door.connected(peer)
            if peer not in needed or gone or now > until:
                self._door.release(peer, removed=True)
                self.table.remove(peer)
                del self._removing[peer]
                # It knows Ray's token.
                self.ray.renew()
                log.info("a peer was removed", peer=peer)
        for each in self.table.peers():
            if each.health == "leaving" and each.id not in needed and each.id not in self._removing:
                self._door.release(each.id, removed=False)

    async def _tick(self) -> None:
        """Lets time pass for the table; who falls silent or is lost by that is news."""
        clock = asyncio.get_running_loop().time
        before, known = clock(), self._healths()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = clock()
            self.table.passed(now - before)
            before = now
            if (healths := self._healths()) != known:
                known = healths
                self._changed.set()

    def _healths(self) -> list[tuple[str, str]]:
        return [(peer.id, peer.health) for peer in self.table.peers()]

    async def _read_machine(self) -> None:
        if self._measure is not None:
            self._machine = await asyncio.to_thread(self._measure)
        while True:
            await asyncio.sleep(MACHINE_SECONDS)
            self._machine = await asyncio.to_thread(self._read)

    def _news(self) -> News:
        own = Peer("", platform.node() or "head", self._address, self._machine, None, "alive", own_version())
        peers = self.table.peers()
        return News(
            address=f"{self._address}:{self._port}",
            peers=(own, *peers),
            notes=tuple(PeerNote(each.id, self._note(each), self.table.wildcard_ports(each.id)) for each in peers),
            invites=self.invites.open(),
            ray=self.ray.trouble,
            wildcard_ports=self.ray.ports,
            pid=os.getpid(),
        )

    def _note(self, peer: Peer) -> str:
        if peer.health in ("lost", "silent"):
            return "not heard of" if peer.health == "silent" else "away; it comes back with: shardwise peers join"
        if trouble := self.table.trouble(peer.id):
            return trouble
        if peer.id not in self.ray.reached:
            return "Ray does not reach it yet: nothing can be started there"
        return "being removed" if peer.id in self._removing else ""
