"""Engine: one model's step: schedule, execute, commit. Where batches run is left to the Executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from backend.batch import Batch, Sampled
from backend.errors import ShardwiseError
from backend.executor import DeviceLostError, Executor
from backend.messages import StepOutput
from backend.request import Request
from backend.scheduler import Scheduler
from kvcache.statistics import CacheMap

MESSAGE_CHARACTERS = 300
MAP_SECONDS = 0.5


class Engine:
    """Owns the loop over one Scheduler and one Executor; called from one thread.

    `clock` gives monotonic seconds, for deadlines and for the times in the statistics.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._step_seconds = 0.0
        self._scheduling_seconds = 0.0
        self._next_map = float("-inf")
        self._shown: CacheMap | None = None

    def submit(self, request: Request) -> None:
        """Takes a request in; it runs from the next step on. Raises ValueError where its id is live."""
        self._scheduler.add(request, self._clock())

    def cancel(self, request_id: str) -> None:
        """Ends this request at the next step; unknown ids are ignored."""
        self._scheduler.cancel(request_id)

    @property
    def has_work(self) -> bool:
        """Whether `step` would bring anything."""
        return self._scheduler.has_work

    def step(self) -> StepOutput:
        """One step. A request that the executor cannot run ends with an error; DeviceLostError passes through."""
        began = self._clock()
        batch = self._scheduler.schedule(began)
        scheduled = self._clock()
        done, sampled = self._execute(batch) if batch.slices else (batch, [])
        executed = self._clock()
        tokens, ends = self._scheduler.commit(done, sampled)
        ended = self._clock()
        self._step_seconds += ended - began
        self._scheduling_seconds += (scheduled - began) + (ended - executed)
        statistics = msgspec.structs.replace(
            self._scheduler.statistics(),
            step_seconds=self._step_seconds,
            scheduling_seconds=self._scheduling_seconds,
        )
        starts = tuple(self._scheduler.take_starts())
        return StepOutput(tuple(tokens), tuple(ends), statistics, starts, self._map(ended))

    def _map(self, now: float) -> CacheMap | None:
        """What the pages hold, if it has changed, at most twice a second."""
        if now < self._next_map:
            return None
        self._next_map = now + MAP_SECONDS
        shown, self._shown = self._shown, self._scheduler.cache_map()
        return self._shown if self._shown != shown else None

    def _execute(self, batch: Batch) -> tuple[Batch, list[Sampled | None]]:
        """Runs a Batch; where that raises, its halves, down to the sequences that fail alone, which end.

        Running a slice again writes the same K and V to the same places, so what had been done does no harm.
        Returns the part of the Batch that ran, and its results.
        """
        try:
            return batch, self._executor.execute(batch)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - one request's failure must not end the others
            if len(batch.slices) == 1:
                self._scheduler.fail(batch.slices[0].sequence, _explanation(error))
                return replace(batch, slices=()), []
        middle = len(batch.slices) // 2
        first, first_sampled = self._execute(replace(batch, slices=batch.slices[:middle], transfers=()))
        second, second_sampled = self._execute(replace(batch, slices=batch.slices[middle:], transfers=()))
        return replace(batch, slices=first.slices + second.slices), first_sampled + second_sampled


def _explanation(error: Exception) -> str:
    """What a client may read of a failure: no traceback, one short line."""
    if isinstance(error, ShardwiseError):
        return str(error)
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"The engine could not run this request ({text[:MESSAGE_CHARACTERS]})."
