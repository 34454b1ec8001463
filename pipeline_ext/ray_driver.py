"""A program that is the hub's hand in Ray: finds the peers' nodes, keeps an actor on each, passes orders to them.

It is apart from the hub because a Ray driver does not survive its head. `python -m pipeline_ext.ray_driver SOCKET HEAD
ADDRESS`: the number of its socket, HOST:PORT of Ray's head, and the address of this machine's node.
"""

from __future__ import annotations

import logging
import select
import socket
import sys
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from backend.frames import FrameReader, framed
from pipeline_ext.ray_settings import PEER_RESOURCE

LOOK_SECONDS = 1.0
ORDER_SECONDS = 4.0
_ACTOR_SECONDS = 15.0


class DriverMessage(Struct, frozen=True, array_like=True, tag=True):
    """Sent as an array with its type's name in front."""


class PassSpawn(DriverMessage, frozen=True):
    """To the driver; answered by Passed of the same number."""

    number: int
    peer: str
    order: bytes


class PassKill(DriverMessage, frozen=True):
    """To the driver; answered by Passed of the same number."""

    number: int
    peer: str
    workers: tuple[str, ...]


class Passed(DriverMessage, frozen=True):
    """From the driver: empty `trouble` means that it was done."""

    number: int
    trouble: str


class NodesNow(DriverMessage, frozen=True):
    """From the driver, each second: the peers whose nodes and actors are there."""

    peers: Annotated[tuple[str, ...], Meta(max_length=4096)]


ToDriver = PassSpawn | PassKill
FromDriver = Passed | NodesNow
encoder = msgspec.msgpack.Encoder()
to_driver: msgspec.msgpack.Decoder[ToDriver] = msgspec.msgpack.Decoder(ToDriver)
from_driver: msgspec.msgpack.Decoder[FromDriver] = msgspec.msgpack.Decoder(FromDriver)


class Driver:
    """One thread. Nothing waits for a peer longer than ORDER_SECONDS."""

    def __init__(self, hub: socket.socket) -> None:
        self._hub, self._reader = hub, FrameReader(hub)
        self._actors: dict[str, tuple[str, Any]] = {}  # by peer: its node's id, and the actor there
        self._pending: dict[Any, tuple[int, str, float, bool]] = {}
        self._ready: set[str] = set()
        self._starting: dict[Any, tuple[str, float]] = {}

    def run(self) -> None:
        """Until the hub hangs up."""
        looked = 0.0
        while True:
            busy = bool(self._pending or self._starting)
            if select.select([self._hub], [], [], 0.02 if busy else LOOK_SECONDS / 2)[0]:
                if not self._reader.receive():
                    return
                while (body := self._reader.take()) is not None:
                    self._obey(to_driver.decode(body))
            self._collect()
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                self._look()
                self._say(NodesNow(tuple(sorted(self._ready))))

    def _look(self) -> None:
        """Every living node of a peer has one actor, of ours, bound to it."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = {peer: str(node["NodeID"]) for node in alive for peer in _peers_of(node)}
        addresses = {str(node["NodeID"]): str(node["NodeManagerAddress"]) for node in alive}
        for peer in [peer for peer, (node, _) in self._actors.items() if nodes.get(peer) != node]:
            self._drop(peer)
        for peer, node in nodes.items():
            if peer not in self._actors:
                self._place(peer, node, addresses[node])

    def _place(self, peer: str, node: str, address: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from pipeline_ext.ray_actor import Spawner

        bound = NodeAffinitySchedulingStrategy(node, soft=False)
        spawner: Any = ray.remote(Spawner)
        actor = spawner.options(num_cpus=0, max_restarts=0, scheduling_strategy=bound).remote(address)
        self._actors[peer] = (node, actor)
        self._starting[actor.keep_warm.remote()] = (peer, time.monotonic() + _ACTOR_SECONDS)

    def _drop(self, peer: str) -> None:
        self._actors.pop(peer, None)
        self._ready.discard(peer)

    def _obey(self, message: ToDriver) -> None:
        found = self._actors.get(message.peer)
        if found is None:
            self._say(Passed(message.number, "Ray does not reach it"))
            return
        _, actor = found
        if isinstance(message, PassSpawn):
            reference = actor.spawn.remote(message.order)
        else:
            reference = actor.kill.remote(encoder.encode(message.workers))
        until = time.monotonic() + ORDER_SECONDS
        self._pending[reference] = (message.number, message.peer, until, isinstance(message, PassSpawn))

    def _collect(self) -> None:
        import ray

        waiting = [*self._pending, *self._starting]
        if not waiting:
            return
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        now = time.monotonic()
        for reference in ready:
            trouble = _result(reference)
            if reference in self._starting:
                peer, _ = self._starting.pop(reference)
                # What cannot be started now may be later: the next look makes a new actor.
                self._drop(peer) if trouble else self._ready.add(peer)
            else:
                number, peer, _, spawned = self._pending.pop(reference)
                self._answered(number, peer, trouble, spawned)
        for reference in [each for each, (_, _, until, _) in self._pending.items() if until < now]:
            number, *_ = self._pending.pop(reference)
            self._say(Passed(number, f"it did not answer within {ORDER_SECONDS:.0f} s"))
        for reference in [each for each, (_, until) in self._starting.items() if until < now]:
            self._drop(self._starting.pop(reference)[0])

    def _answered(self, number: int, peer: str, trouble: str, spawned: bool) -> None:
        self._say(Passed(number, trouble))
        found = self._actors.get(peer)
        if found is not None and spawned and not trouble:
            found[1].keep_warm.remote()
        elif found is not None and trouble.startswith(_DEAD):
            self._drop(peer)

    def _say(self, message: DriverMessage) -> None:
        self._hub.sendall(framed(encoder.encode(message)))


_DEAD = "its actor died"


def _result(reference: Any) -> str:
    """What the actor answered; its death is an answer too."""
    import ray
    from ray.exceptions import RayError

    try:
        answer = ray.get(reference, timeout=1)
    except RayError as error:
        return f"{_DEAD}: {str(error).strip().splitlines()[0][:200]}"
    return bytes(answer).decode(errors="replace")


def _peers_of(node: dict[str, Any]) -> list[str]:
    return [name.removeprefix(PEER_RESOURCE) for name in node.get("Resources", {}) if name.startswith(PEER_RESOURCE)]


def main() -> None:
    import ray

    number, head, address = sys.argv[1:4]
    hub = socket.socket(fileno=int(number))
    ray.init(
        address=head,
        _node_ip_address=address,
        log_to_driver=False,
        configure_logging=True,
        logging_level=logging.ERROR,
        namespace="shardwise",
    )
    Driver(hub).run()


if __name__ == "__main__":
    main()
