"""ProcessCluster: a Cluster of this machine alone, for stages that are processes beside each other; and for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from backend.hardware.machine import Machine
from backend.process_log import rank_log
from pipeline_ext.cluster import SpawnError, SpawnOrder
from pipeline_ext.own_version import own_version
from pipeline_ext.peer import Peer
from pipeline_ext.stage_child import STAGE_COMMAND, StageChild, StageStart


class ProcessCluster:
    """A Cluster. What it spawned dies with the thread that did.

    Args:
        machine: read when asked for.
        log: the engine's, beside which each process gets its own; None leaves their output on ours.
        guests: ids of further machines that tests pretend to have; their processes run here, too.
    """

    def __init__(
        self,
        machine: Callable[[], Machine],
        log: Path | None = None,
        command: Sequence[str] = STAGE_COMMAND,
        guests: tuple[str, ...] = (),
    ) -> None:
        self._machine, self._log, self._command = machine, log, command
        self._guests = list(guests)
        self._warm: list[tuple[int, StageChild]] = []
        self._address = self._identity = ""
        # By the number of its log; a number is used again when its process has ended.
        self._children: dict[int, tuple[str, str, StageChild]] = {}

    @property
    def address(self) -> str:
        return ""

    def keep_warm(self, count: int) -> None:
        """Starts so many processes, which import what they need until they are wanted. Raises SpawnError."""
        for _ in range(count):
            self._warm.append(self._started(()))

    def reach(self, address: str, identity: str) -> None:
        """From now on processes may have neighbours on other machines; see StageStart."""
        self._address, self._identity = address, identity

    def peers(self) -> tuple[Peer, ...]:
        machine = self._machine()
        return tuple(
            Peer(id=name, name=name or "this machine", address="", machine=machine, link=None, health="alive",
                 version=own_version())
            for name in ("", *self._guests)
        )  # fmt: skip

    def spawn(self, peer: str, order: SpawnOrder) -> None:
        if peer and peer not in self._guests:
            raise SpawnError(f"no machine is called {peer}")
        for worker in order.workers:
            number, child = self._warm_one() if not order.environment else self._started(order.environment)
            self._children[number] = peer, worker, child
            try:
                child.start(StageStart(worker, order.door, order.secret, self._address, self._identity))
            except OSError as error:
                raise SpawnError(f"a process could not be started: {error}") from None

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        for number, (_, worker, child) in list(self._children.items()):
            if worker in workers:
                child.kill()
                del self._children[number]

    def give_back(self, worker: str) -> None:
        """It has loaded nothing, and may be another worker when one is wanted."""
        for number, (_, its, child) in list(self._children.items()):
            if its == worker:
                del self._children[number]
                self._warm.insert(0, (number, child))

    def released(self, peer: str) -> None:
        """Nobody leaves."""

    def lose(self, peer: str) -> None:
        """For tests: a pretended machine goes down, with its processes."""
        self._guests.remove(peer)
        self.kill(peer, tuple(worker for its, worker, _ in self._children.values() if its == peer))

    def close(self) -> None:
        for child in (*(child for _, _, child in self._children.values()), *(child for _, child in self._warm)):
            child.kill()
        self._children.clear()
        self._warm.clear()

    def _warm_one(self) -> tuple[int, StageChild]:
        while self._warm:
            number, child = self._warm.pop(0)
            if child.alive:
                return number, child
        return self._started(())

    def _started(self, environment: tuple[tuple[str, str], ...]) -> tuple[int, StageChild]:
        number = self._free_number()
        try:
            return number, StageChild.spawn(dict(environment), rank_log(self._log, number), self._command)
        except OSError as error:
            raise SpawnError(f"a process could not be started: {error}") from None

    def _free_number(self) -> int:
        living = {number for number, (_, _, child) in self._children.items() if child.alive}
        living |= {number for number, _ in self._warm}
        return next(number for number in range(len(living) + 1) if number not in living)
