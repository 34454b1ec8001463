"""HubCluster: the Cluster of an engine on the head: peers by the hub's socket, its own processes on this machine.

Where the hub is away, the peers are the last known, nothing can be started on them, and what runs there runs on.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import msgspec

from backend.hardware.machine import read_machine
from pipeline_ext.cluster import Cluster, SpawnError, SpawnOrder
from pipeline_ext.hub_control import (
    HubClient,
    HubRefusalError,
    Kill,
    News,
    NoHubError,
    ReleasePeer,
    Spawn,
    next_news,
)
from pipeline_ext.identity import head_folder
from pipeline_ext.own_version import own_version
from pipeline_ext.peer import Peer
from pipeline_ext.peer_table import read_known

_CALL_SECONDS = 6.0
_FIRST_NEWS_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


class HubCluster:
    """A Cluster; from any thread.

    Args:
        local: starts the head's own processes; its machine is this one.
        client: of the hub's socket.
        known: the peers as they were last, for an engine that starts while the hub is away.
    """

    def __init__(
        self,
        local: Cluster,
        client: HubClient | None = None,
        known: Callable[[], tuple[Peer, ...]] = lambda: read_known(head_folder() / "peers.json"),
    ) -> None:
        self._local, self._client = local, client or HubClient(seconds=_CALL_SECONDS)
        self._engine = secrets.token_hex(8)
        self._news: News | None = None
        self._known = known()
        self._told, self._closed = threading.Event(), threading.Event()
        self._spawned: dict[str, list[str]] = {}
        self._used: set[str] = set()  # peers that may not go yet
        self._lock = threading.Lock()
        threading.Thread(target=self._follow, name="hub news", daemon=True).start()
        # So that who asks next knows the peers, if a hub runs.
        self._told.wait(_FIRST_NEWS_SECONDS)

    @property
    def address(self) -> str:
        news = self._news
        return "" if news is None else news.address.rpartition(":")[0]

    def peers(self) -> tuple[Peer, ...]:
        news = self._news
        if news is not None:
            return news.peers
        own = Peer("", "this machine", "", read_machine(), None, "alive", own_version())
        return (own, *self._known)

    def spawn(self, peer: str, order: SpawnOrder) -> None:
        if not peer:
            self._local.spawn(peer, order)
            return
        with self._lock:
            self._spawned.setdefault(peer, []).extend(order.workers)
            self._used.add(peer)
        try:
            self._client.ask(Spawn(self._engine, peer, msgspec.msgpack.encode(order)))
        except (NoHubError, HubRefusalError) as error:
            raise SpawnError(f"{error.what}: {error.why}") from None

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        if not peer:
            self._local.kill(peer, workers)
            return
        with self._lock:
            left = self._spawned.get(peer, [])
            left[:] = [worker for worker in left if worker not in workers]
        self._ask_quietly(Kill(self._engine, peer, workers))

    def released(self, peer: str) -> None:
        if peer:
            with self._lock:
                self._used.discard(peer)
            self._ask_quietly(ReleasePeer(self._engine, peer))

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            spawned, self._spawned = self._spawned, {}
        for peer, workers in spawned.items():
            if workers:
                self._ask_quietly(Kill(self._engine, peer, tuple(workers)))
        self._local.close()

    def _ask_quietly(self, question: Kill | ReleasePeer) -> None:
        """Where the hub or the peer is away, the processes end by the engine's silence."""
        try:
            self._client.ask(question)
        except (NoHubError, HubRefusalError):
            return

    def _follow(self) -> None:
        """Hears of the peers as long as the engine lives, from one hub after the other."""
        while not self._closed.is_set():
            try:
                with self._lock:
                    used = tuple(self._used)
                line = self._client.subscribe(self._engine, used)
            except NoHubError:
                self._told.set()
                self._closed.wait(_PAUSE_SECONDS)
                continue
            with line:
                while (news := next_news(line)) is not None and not self._closed.is_set():
                    self._news = news
                    self._told.set()
