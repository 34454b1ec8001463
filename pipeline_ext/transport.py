"""Transport: how the engine's side of a pipeline reaches its workers, with time; sockets or the simulator stand behind.

Nothing is believed of what arrives but that it came from this worker in this order; epochs are the pipeline's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline_ext.messages import FromStage, ToStage


@dataclass(frozen=True, slots=True)
class Arrived:
    """A worker has come to the door: it can be spoken to. `pid` counts on its machine."""

    worker: str
    pid: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A worker said this. Its pulse comes the same way, on a line of its own that computing does not hold up."""

    worker: str
    message: FromStage


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker's lines have closed or broken, or it broke the protocol; nothing more comes from it."""

    worker: str
    cause: str


Event = Arrived | Heard | Gone


class Transport(Protocol):
    """Used from one thread."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def poll(self, patience: float) -> list[Event]:
        """What has happened, in order for each worker, waiting up to so many seconds for a first."""
        ...

    def send(self, worker: str, message: ToStage) -> None:
        """Queues a message; never blocks, and is silent about a worker that has gone: `Gone` says so."""
        ...

    def send_encoded(self, worker: str, body: bytes) -> None:
        """`send` for a message that was encoded by `messages.encoder`, for several workers."""
        ...

    def drop(self, worker: str) -> None:
        """Closes its lines; nothing more comes from it, not even Gone."""
        ...
