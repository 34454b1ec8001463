"""RankWork: what a worker process does for its engine, apart from talking to it. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backend.batch import Batch, Sampled
from backend.hidden_states import HiddenStates
from backend.layer_span import LayerSpan
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


class StageWork(RankWork, Protocol):
    """One rank of a stage; `load_stage` comes in place of `load`, and `run_stage` in place of `execute`.

    `groups` is how many cache groups the whole model's layout has: batches have spans for all of them on all stages.
    """

    def load_stage(self, order: Load, span: LayerSpan, on_progress: OnProgress) -> Loaded:
        """Becomes the rank that the order says, of a stage with these layers.

        The order's Plan is the stage's own (`backend.planner.stage_plan`) and its rank counts within the stage; its
        `layers` are the whole model's. A model that is served by one stage only is refused with a ShardwiseError.
        """
        ...

    @property
    def hidden_dtype(self) -> str:
        """Of the hidden states that come in and go out, as HiddenStates has it."""
        ...

    @property
    def hidden_columns(self) -> int:
        """Elements that a token has of them."""
        ...

    def run_stage(self, batch: Batch, hidden: HiddenStates | None) -> HiddenStates | list[Sampled | None]:
        """Begins the batch's transfers, then computes its slices with the stage's layers.

        hidden: what the stage before has handed on, one row a token; None on the first stage, and on ranks but the
        first, which get them from it. What the next stage needs is returned by rank 0 of a stage that does not end the
        model; results as Executor's by rank 0 of the last one; other ranks return as many times None as there are
        slices. A batch without slices, for a stage that sits a step out, gives no results.
        """
        ...
