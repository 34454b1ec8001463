"""SimulatedTransport: the engine's side of the lines; while the engine waits, simulated time goes on."""

from __future__ import annotations

from collections.abc import Callable

from pipeline_ext.messages import Beat, ToStage, encoder, from_stage_decoder, to_stage_decoder
from pipeline_ext.simulator.wires import CLOSED, Connection, Network, Process
from pipeline_ext.transport import Arrived, Event, Gone, Heard

BEAT_SECONDS = 1.0
# The engine's own work between two polls.
TURN_SECONDS = 0.0005


class SimulatedTransport:
    """A Transport of one engine process. `before_poll` lets faults happen to the engine itself."""

    def __init__(self, network: Network, process: Process, before_poll: Callable[[], None]) -> None:
        self._network, self.process = network, process
        self._before_poll = before_poll
        self._events: list[Event] = []
        self._lines: dict[str, dict[str, Connection]] = {}
        self._left: set[str] = set()
        self._pids = 0
        self._beat()

    def now(self) -> float:
        return self._network.clock.now

    def poll(self, patience: float) -> list[Event]:
        self._before_poll()
        clock = self._network.clock
        clock.run(clock.now + TURN_SECONDS, lambda: False)
        clock.run(clock.now + patience, lambda: bool(self._events))
        events, self._events = self._events, []
        return events

    def send(self, worker: str, message: ToStage) -> None:
        self.send_encoded(worker, encoder.encode(message))

    def send_encoded(self, worker: str, body: bytes) -> None:
        lines = self._lines.get(worker)
        if lines is not None and "orders" in lines:
            lines["orders"].send(self.process, to_stage_decoder.decode(body))

    def drop(self, worker: str) -> None:
        self._left.add(worker)
        for line in self._lines.pop(worker, {}).values():
            line.close(self.process)

    def accept(self, connection: Connection) -> None:
        """Somebody has dialled; the first thing that he says is who he is."""
        name = ""

        def hear(message: object) -> None:
            nonlocal name
            if message is CLOSED:
                connection.close(self.process)
                if name:
                    self._lose(name)
            elif not name and isinstance(message, tuple):
                name = self._let_in(connection, *message)
            else:
                self._events.append(Heard(name, from_stage_decoder.decode(encoder.encode(message))))

        connection.listen(self.process, hear)

    def _let_in(self, connection: Connection, worker: str, kind: str) -> str:
        if worker in self._left:
            connection.close(self.process)
            return worker
        lines = self._lines.setdefault(worker, {})
        lines[kind] = connection
        if len(lines) == 2:
            self._pids += 1
            self._events.append(Arrived(worker, self._pids))
        return worker

    def _lose(self, worker: str) -> None:
        if worker not in self._left:
            self.drop(worker)
            self._events.append(Gone(worker, "its line was closed"))

    def _beat(self) -> None:
        if not self.process.alive:
            return
        for lines in self._lines.values():
            if "pulse" in lines:
                lines["pulse"].send(self.process, Beat())
        self.process.after(BEAT_SECONDS, self._beat)
