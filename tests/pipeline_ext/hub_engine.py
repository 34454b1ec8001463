"""A program for tests: an engine as far as its door and its cluster go. Reads orders as lines, answers each with one.

spawn PEER NAME     the peer's id, or - for its only one; answers when the process has come to the door: its pid
lives NAME          yes, or no
kill PEER NAME; drop NAME: closes its lines, so that it ends by itself
peers               the peers' healths
"""

from __future__ import annotations

import sys
import time

from backend.hardware.machine import read_machine
from pipeline_ext.cluster import SpawnError, SpawnOrder
from pipeline_ext.door import Door
from pipeline_ext.hub_cluster import HubCluster
from pipeline_ext.identity import head_identity, server_context
from pipeline_ext.process_cluster import ProcessCluster
from pipeline_ext.socket_transport import SocketTransport
from pipeline_ext.transport import Arrived, Gone

SECRET = b"of this engine"


class Engine:
    def __init__(self) -> None:
        self._cluster = HubCluster(ProcessCluster(read_machine))
        self._door = Door(SECRET, self._cluster.address, server_context(head_identity()))
        self._transport = SocketTransport(self._door)
        self._living: dict[str, int] = {}

    def obey(self, line: str) -> str:
        match line.split():
            case ["spawn", peer, name]:
                return self._spawn(self._peer(peer), name)
            case ["lives", name]:
                self._follow(0.2)
                return "yes" if name in self._living else "no"
            case ["kill", peer, name]:
                self._cluster.kill(self._peer(peer), (name,))
                return "killed"
            case ["released", peer]:
                self._cluster.released(self._peer(peer))
                return "released"
            case ["drop", name]:
                self._transport.drop(name)
                return "dropped"
            case ["peers"]:
                return " ".join(peer.health for peer in self._cluster.peers()[1:]) or "none"
            case _:
                return "what?"

    def _peer(self, name: str) -> str:
        return self._cluster.peers()[1].id if name == "-" else "" if name == "head" else name

    def _spawn(self, peer: str, name: str) -> str:
        try:
            self._cluster.spawn(peer, SpawnOrder((name,), self._door.place(peer), SECRET))
        except SpawnError as error:
            return f"not spawned: {error}"
        until = time.monotonic() + 30
        while name not in self._living and time.monotonic() < until:
            self._follow(0.2)
        return str(self._living.get(name, "it did not come"))

    def _follow(self, seconds: float) -> None:
        for event in self._transport.poll(seconds):
            match event:
                case Arrived(worker, pid):
                    self._living[worker] = pid
                case Gone(worker, _):
                    self._living.pop(worker, None)
                case _:
                    pass


def main() -> None:
    engine = Engine()
    for line in sys.stdin:
        print(engine.obey(line), flush=True)


if __name__ == "__main__":
    main()
