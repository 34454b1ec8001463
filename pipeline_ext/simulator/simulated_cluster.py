"""SimulatedCluster: machines that join, beat, leave and vanish under a hub's Membership, and processes on them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from backend.hardware.cpu import Cpu
from backend.hardware.machine import Machine
from backend.hardware.memory import Memory
from pipeline_ext.cluster import SpawnError, SpawnOrder
from pipeline_ext.membership import Membership
from pipeline_ext.peer import Health, Peer, PeerLink
from pipeline_ext.simulator.wires import CLOSED, Connection, Host, Network, Process

LAYER_BYTES = 1000
AGENT_SECONDS = 1.0
HUB_SECONDS = 0.5


class SimulatedAgent:
    """The process on a peer that tells the hub that its machine lives."""

    def __init__(self, hub: SimulatedHub, network: Network, host: Host) -> None:
        self._hub, self._network, self.host = hub, network, host
        host.incarnation += 1
        self._incarnation = host.incarnation
        self.process = Process(network.clock, host, f"agent of {host.name} {host.incarnation}")
        self._line: Connection | None = None
        self._connect()
        self._beat()

    def _connect(self) -> None:
        line = Connection(self._network, self.process, self._hub.process)
        line.listen(self._hub.process, lambda message: self._hub.hear(line, message))
        line.listen(self.process, self._hear)
        line.send(self.process, ("joined", self.host.name, self._incarnation))
        self._line = line

    def _hear(self, message: object) -> None:
        """The hub has closed the line, or it broke: it comes again as a later incarnation."""
        if self._line is not None:
            self._line.close(self.process)
        self._line = None
        self.host.incarnation += 1
        self._incarnation = self.host.incarnation
        self.process.after(AGENT_SECONDS, self._connect)

    def _beat(self) -> None:
        if self._line is not None:
            self._line.send(self.process, ("beat", self.host.name, self._incarnation))
        self.process.after(AGENT_SECONDS, self._beat)


class SimulatedHub:
    """On the head: the table of machines."""

    def __init__(self, network: Network, head: Host) -> None:
        self._network = network
        self.process = Process(network.clock, head, "hub")
        self.members = Membership()
        self._lines: dict[Connection, tuple[str, int]] = {}
        self._tick()

    def hear(self, line: Connection, message: object) -> None:
        if message is CLOSED or not isinstance(message, tuple):
            line.close(self.process)
            if line in self._lines:
                self.members.gone(*self._lines.pop(line))
            return
        kind, peer, incarnation = message
        self._lines[line] = (peer, incarnation)
        known = self.members.joined(peer, incarnation) if kind == "joined" else self.members.heard(peer, incarnation)
        if not known:
            self._lines.pop(line)
            line.close(self.process)

    def _tick(self) -> None:
        self.members.passed(HUB_SECONDS)
        self.process.after(HUB_SECONDS, self._tick)


class SimulatedCluster:
    """A Cluster of one engine process; the head's id is empty."""

    def __init__(
        self, network: Network, hub: SimulatedHub, hosts: dict[str, Host], spawn: Callable[[Host, str], Process]
    ) -> None:
        self._network, self._hub, self._hosts, self._spawn = network, hub, hosts, spawn
        self._chance: Random = network.chance
        self.processes: dict[str, Process] = {}

    @property
    def address(self) -> str:
        return ""

    def peers(self) -> tuple[Peer, ...]:
        names = ["", *sorted(self._hub.members.members)]
        return tuple(self._peer(self._hosts[name]) for name in names)

    def _peer(self, host: Host) -> Peer:
        health: Health = (self._hub.members.health(host.name) or "lost") if host.name else "alive"
        held = 0
        total = host.capacity * LAYER_BYTES
        machine = Machine(Cpu("", 1, 1), Memory(total, total - held))
        link = PeerLink(host.latency, 1e9) if host.name else None
        return Peer(host.name, host.name, host.name, machine, link, health, "0")

    def spawn(self, peer: str, order: SpawnOrder) -> None:
        host = self._hosts[peer]
        if peer and self._hub.members.health(peer) not in ("alive", "leaving"):
            raise SpawnError(f"{peer} is not there")
        if not host.alive or not self._network.reaches(self._hosts[""], host):
            return  # the order is lost, and nobody comes
        if self._chance.random() < 0.01:
            raise SpawnError(f"{peer} cannot start a process")
        for worker in order.workers:
            self.processes[worker] = self._spawn(host, worker)

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        if not self._network.reaches(self._hosts[""], self._hosts[peer]):
            return
        for worker in workers:
            process = self.processes.get(worker)
            if process is not None:
                self._network.clock.after(0.01, process.die)

    def released(self, peer: str) -> None:
        self._hosts[peer].released = True

    def close(self) -> None:
        for process in self.processes.values():
            if self._network.reaches(self._hosts[""], process.host):
                self._network.clock.after(0.01, process.die)
