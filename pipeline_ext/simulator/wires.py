"""Machines, processes and the connections between them, simulated: ordered bytes that partitions hold up.

A connection behaves as TCP does: messages of one direction keep their order; between machines that are cut off they
wait, and for too long break it; a process that dies closes its connections, a machine without power says nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from pipeline_ext.simulator.clock import Action, SimulatedClock

# As TCP_USER_TIMEOUT on our sockets.
ABORT_SECONDS = 8.0

Hear = Callable[[object], None]


class Closed:
    """Heard as the last thing on a connection."""


CLOSED = Closed()


class Host:
    """One machine. `slow` stretches computing; `latency` is the way to it in seconds."""

    def __init__(self, name: str, capacity: int, latency: float) -> None:
        self.name, self.capacity, self.latency = name, capacity, latency
        self.alive = True
        self.slow = 1.0
        self.refuses = False
        self.incarnation = 0
        self.leaving = False
        self.released = False


class Process:
    """One process. What happens to it while it is frozen, it notices when it is thawed."""

    def __init__(self, clock: SimulatedClock, host: Host, name: str) -> None:
        self._clock, self.host, self.name = clock, host, name
        self.alive, self.frozen = True, False
        self.connections: list[Connection] = []
        self._missed: deque[Action] = deque()

    def do(self, action: Action) -> None:
        """Now, or when it can."""
        if self.frozen:
            self._missed.append(action)
        elif self.alive:
            action()

    def after(self, seconds: float, action: Action) -> None:
        self._clock.after(seconds, lambda: self.do(action))

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        while self._missed and not self.frozen:
            missed = self._missed.popleft()
            if self.alive:
                missed()

    def die(self, *, silently: bool = False) -> None:
        """silently: with its machine, so that nobody is told."""
        if not self.alive:
            return
        self.alive = False
        self._missed.clear()
        for connection in list(self.connections):
            connection.end(self, silently=silently)


class Network:
    """Which machines reach each other, and how fast."""

    def __init__(self, clock: SimulatedClock, chance: Random) -> None:
        self.clock, self.chance = clock, chance
        self._cut: set[frozenset[str]] = set()
        self._held: list[_Direction] = []

    def reaches(self, first: Host, second: Host) -> bool:
        return first is second or frozenset((first.name, second.name)) not in self._cut

    def cut(self, first: Host, second: Host) -> None:
        self._cut.add(frozenset((first.name, second.name)))

    def heal(self) -> None:
        self._cut.clear()
        held, self._held = self._held, []
        for direction in held:
            direction.go_on()

    def delay(self, first: Host, second: Host) -> float:
        base = 0.0001 if first is second else first.latency + second.latency
        return base * (1.0 + self.chance.random())

    def hold(self, direction: _Direction) -> None:
        self._held.append(direction)


class _Direction:
    """One way of a connection."""

    __slots__ = ("_connection", "_due", "_network", "hear", "held", "source", "target")

    def __init__(self, network: Network, connection: Connection, source: Process, target: Process) -> None:
        self._network, self._connection = network, connection
        self.source, self.target = source, target
        self._due = 0.0
        self.held: deque[object] = deque()
        self.hear: Hear | None = None

    def send(self, message: object) -> None:
        clock = self._network.clock
        self._due = max(self._due, clock.now + self._network.delay(self.source.host, self.target.host))
        clock.at(self._due, lambda: self._arrive(message))

    def _arrive(self, message: object) -> None:
        if self.held or not self._network.reaches(self.source.host, self.target.host) or not self.target.host.alive:
            if not self.held:
                self._network.hold(self)
                self._network.clock.after(ABORT_SECONDS, self._connection.abort_if_held)
            self.held.append(message)
            return
        self.target.do(lambda: self._tell(message))

    def _tell(self, message: object) -> None:
        if self.hear is not None and not self._connection.deaf(self.target):
            self.hear(message)

    def go_on(self) -> None:
        held, self.held = self.held, deque()
        for message in held:
            self.send(message)


class Connection:
    """Between two processes. Each `listen`s for itself; after it has closed, it hears nothing more."""

    def __init__(self, network: Network, first: Process, second: Process) -> None:
        self._network = network
        self._processes = (first, second)
        self._ways = (
            _Direction(network, self, first, second),
            _Direction(network, self, second, first),
        )
        self._closed: set[Process] = set()
        for process in self._processes:
            process.connections.append(self)

    def deaf(self, process: Process) -> bool:
        return process in self._closed

    def listen(self, process: Process, hear: Hear) -> None:
        self._ways[0 if process is self._processes[1] else 1].hear = hear

    def send(self, process: Process, message: object) -> None:
        """From this process to the other; silent where it is closed."""
        if process not in self._closed and process.alive:
            self._ways[0 if process is self._processes[0] else 1].send(message)

    def close(self, process: Process) -> None:
        """This side lets go; the other hears of it."""
        self.end(process, silently=False)

    def end(self, process: Process, *, silently: bool) -> None:
        if process in self._closed:
            return
        self._closed.add(process)
        process.connections.remove(self)
        if not silently:
            self._ways[0 if process is self._processes[0] else 1].send(CLOSED)

    def cut(self) -> None:
        """A middle box drops it: both sides find it closed."""
        for way in self._ways:
            way.send(CLOSED)

    def abort_if_held(self) -> None:
        """What was sent has not been taken for too long."""
        if not any(way.held for way in self._ways):
            return
        for way in self._ways:
            way.held.clear()
            target = way.target
            if target not in self._closed and way.hear is not None:
                target.do(lambda way=way: way._tell(CLOSED))
