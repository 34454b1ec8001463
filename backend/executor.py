"""Executor: runs a Batch somewhere and hides where. The engine loop calls it and nothing else of the compute side."""

from __future__ import annotations

from typing import Protocol

from backend.batch import Batch, Sampled
from backend.measured_rank import MeasuredRank
from kvcache.transfer import TransferDone


class DeviceLostError(RuntimeError):
    """The device or a rank is gone: no request can run here any more, and the engine must start again."""


class Executor(Protocol):
    """Called by the engine loop only, from one thread. `execute` may block for the length of a step.

    Implementations: the in-process executor over one Runner; tests use a table of canned answers.
    """

    def execute(self, batch: Batch) -> list[Sampled | None]:
        """Begins the batch's transfers, then computes its slices.

        One entry per slice, in order: the sampled token, or None where the slice did not ask for one. After an
        exception the engine runs parts of the same batch again, without its transfers, to find the sequence that caused
        it; after DeviceLostError it does not.
        """
        ...

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        """The transfers that ended since the last call; waits up to `patience` seconds for a first one, if any runs."""
        ...

    def measure(self) -> tuple[MeasuredRank, ...]:
        """Each rank's memory at this moment, between steps."""
        ...

    def close(self) -> None:
        """Frees the device; no call follows."""
        ...
