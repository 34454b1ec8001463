"""Executor: runs a Batch somewhere and hides where. The engine loop calls it and nothing else of the compute side."""

from __future__ import annotations

from typing import Protocol

from backend.batch import Batch, Sampled
from backend.measured_rank import MeasuredRank
from backend.standing import Standing
from kvcache.transfer import TransferDone


class DeviceLostError(RuntimeError):
    """The device or a rank is gone: no request can run here any more, and the engine must start again."""


class PipelineBrokenError(RuntimeError):
    """Stages have been joined anew: what was in flight is void, nothing of it was or will be told.

    A void batch may have run on some stages and not on others; running its slices again does no harm, because they
    write the same to the same places. All its transfers, and earlier ones that were not over yet, count as failed.

    Attributes:
        lost: numbers of the stages whose pages, in all tiers, are empty now; the other stages' are as they were.
    """

    def __init__(self, lost: tuple[int, ...]) -> None:
        super().__init__(f"stages were joined anew; without their pages: {lost}")
        self.lost = lost


class Executor(Protocol):
    """Called by the engine loop only, from one thread. `execute` may block for the length of a step.

    `begin` and `finish` are for several batches at a time, which stages compute behind each other: batches finish in
    the order in which they were begun, and each stage runs them in this order, so that pages which one batch gives up
    may be written by the next. Implementations: the in-process executor over one Runner, ranks, stages; tests use a
    table of canned answers.
    """

    @property
    def depth(self) -> int:
        """How many batches should be in flight now, at least 1; it may change with what is measured."""
        ...

    @property
    def in_flight(self) -> int:
        """How many batches have begun and not finished."""
        ...

    def begin(self, batch: Batch) -> None:
        """Hands a batch out; read its spans now, they hold until the scheduler's next call only."""
        ...

    def finish(self, patience: float | None = None) -> list[Sampled | None] | None:
        """The oldest batch's results, as `execute` returns and raises; None where it has none after so many seconds.

        Raises PipelineBrokenError instead where stages had to be joined anew.
        """
        ...

    def standing(self) -> Standing | None:
        """Which process on which machine is which rank, and what is wrong, if that has changed since the last call."""
        ...

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
