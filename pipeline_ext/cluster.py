"""Cluster: the machines that stages can be put on, and the spawning of their processes there.

Who belongs to it, and how one joins, is the hub's; what stages are put where is placement's.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from pipeline_ext.peer import Peer


class SpawnOrder(Struct, frozen=True):
    """Processes of one stage to be started on one machine: constants and byte strings only, nothing of a request.

    Attributes:
        workers: a name for each process, one a rank, never used before; by it the process introduces itself.
        door: where the engine listens: HOST:PORT, or the path of a Unix socket on the same machine.
        secret: what the processes show at the door; of this engine process only.
        environment: variables that they need beside the machine's own (thread counts), no secrets.
    """

    workers: tuple[str, ...]
    door: str
    secret: bytes
    environment: tuple[tuple[str, str], ...] = ()


class SpawnError(RuntimeError):
    """Nothing could be started there; says why."""


class Cluster(Protocol):
    """Called by one engine process. Implementations: over the hub (Ray), local processes, and the simulator's.

    No method blocks for long (at most about 5 s); all are safe to call again.
    """

    @property
    def address(self) -> str:
        """The head's address for its peers; empty where there are none and Unix sockets do."""
        ...

    def peers(self) -> tuple[Peer, ...]:
        """All machines known, the head itself first (its id is empty), as of this moment; the last known where the hub
        does not answer."""
        ...

    def spawn(self, peer: str, order: SpawnOrder) -> None:
        """Starts these processes there, soon; they come to the door by themselves. Raises SpawnError."""
        ...

    def kill(self, peer: str, workers: tuple[str, ...]) -> None:
        """Kills them, if they are still there and the machine can be reached; they also end by themselves when the
        engine has been silent for long."""
        ...

    def released(self, peer: str) -> None:
        """A peer that is leaving is not needed by this engine any more."""
        ...

    def close(self) -> None:
        """Lets go of what the engine held; processes it spawned on peers are killed."""
        ...
