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
        # By the number of its log; a number is used again when its process has ended.
        self._children: dict[int, tuple[str, str, StageChild]] = {}

    @property
    def address(self) -> str:
        return ""

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
            try:
                number = self._free_number()
                child = StageChild.spawn(dict(order.environment), rank_log(self._log, number), self._command)
                self._children[number] = peer, worker, child
                child.start(StageStart(worker, order.door, order.secret))
            except OSError as error:
                raise SpawnError(f"a process could not be started: {error}") from None

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        for number, (_, worker, child) in list(self._children.items()):
            if worker in workers:
                child.kill()
                del self._children[number]

    def released(self, peer: str) -> None:
        """Nobody leaves."""

    def lose(self, peer: str) -> None:
        """For tests: a pretended machine goes down, with its processes."""
        self._guests.remove(peer)
        self.kill(peer, tuple(worker for its, worker, _ in self._children.values() if its == peer))

    def close(self) -> None:
        for _, _, child in self._children.values():
            child.kill()
        self._children.clear()

    def _free_number(self) -> int:
        living = {number for number, (_, _, child) in self._children.items() if child.alive}
        return next(number for number in range(len(living) + 1) if number not in living)
