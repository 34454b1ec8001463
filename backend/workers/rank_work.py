"""RankWork: what a worker process does for its engine, apart from talking to it. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backend.batch import Batch, Sampled
from backend.library.files import ModelFiles
from backend.measured_rank import MeasuredRank
from backend.planner.model_facts import ModelFacts
from backend.workers.worker_messages import Load, Loaded
from kvcache.transfer import TransferDone

OnProgress = Callable[[str, int, int], None]


class RankWork(Protocol):
    """One rank. All calls come from one thread; `load` and `warm_up` come once, before the steps.

    A ShardwiseError before the steps is for the person who started the engine. DeviceLostError ends the worker.
    """

    def describe(self, files: ModelFiles) -> ModelFacts:
        """The whole model's facts."""
        ...

    def load(self, order: Load, on_progress: OnProgress) -> Loaded:
        """Becomes the rank that the order says. Other ranks may take much longer."""
        ...

    def warm_up(self, on_progress: OnProgress) -> None:
        """Computes something, together with the others, all of which have loaded."""
        ...

    def measure(self) -> MeasuredRank:
        """This rank's memory at this moment, after the warm-up."""
        ...

    @property
    def groups(self) -> int:
        """How many cache groups the layout has."""
        ...

    @property
    def collectives(self) -> int:
        """How many collectives this rank has begun since it was loaded."""
        ...

    def execute(self, batch: Batch) -> list[Sampled | None]:
        """As Executor's; only rank 0 chooses tokens, the results of others are not read."""
        ...

    def transfers_done(self, patience: float) -> list[TransferDone]:
        """As Executor's."""
        ...
