"""Engine: one model's step: schedule, execute, commit. Where batches run is left to the Executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from backend.batch import Batch, Sampled
from backend.errors import ShardwiseError
from backend.events import End, EngineStatistics, Token
from backend.executor import DeviceLostError, Executor
from backend.measured_rank import MeasuredRank
from backend.messages import StepOutput
from backend.request import Request
from backend.scheduler import Scheduler
from kvcache.statistics import CacheMap

MESSAGE_CHARACTERS = 300
MAP_SECONDS = 0.5
PATIENCE_SECONDS = 0.05
# A batch with fewer tokens of prompts says little of how fast they are computed.
PROMPT_TOKENS = 64


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
        batch = self._schedule(began)
        scheduled = self._clock()
        done, sampled = self._execute(batch) if batch.slices or batch.transfers else (batch, [])
        executed = self._clock()
        self._observe(done, executed - scheduled)
        tokens, ends = self._scheduler.commit(done, sampled)
        ended = self._clock()
        self._step_seconds += ended - began
        self._scheduling_seconds += (scheduled - began) + (ended - executed)
        return self._output(tokens, ends, ended)

    def idle(self) -> StepOutput | None:
        """While there is no work, about once a second: has pages put on disk that are only in memory.

        None where nothing is to be told; else it likes to be called again soon.
        """
        done = self._executor.transfers_done()
        self._scheduler.transfers_done(done)
        batch = self._scheduler.idle()
        if batch.transfers:
            self._executor.execute(batch)
        if not done and not self._scheduler.awaits_transfers:
            return None
        return self._output([], [], self._clock())

    def close(self) -> None:
        """Frees the device; no call follows."""
        self._executor.close()

    def statistics(self) -> EngineStatistics:
        """A snapshot."""
        return msgspec.structs.replace(
            self._scheduler.statistics(),
            step_seconds=self._step_seconds,
            scheduling_seconds=self._scheduling_seconds,
        )

    def measure(self) -> tuple[MeasuredRank, ...]:
        """Each rank's memory at this moment. DeviceLostError passes through."""
        return self._executor.measure()

    def _schedule(self, now: float) -> Batch:
        """The next batch. Where everything awaits transfers, waits a little for one, so as not to spin."""
        self._scheduler.transfers_done(self._executor.transfers_done())
        batch = self._scheduler.schedule(now)
        if not batch.slices and not batch.transfers and self._scheduler.awaits_transfers:
            self._scheduler.transfers_done(self._executor.transfers_done(PATIENCE_SECONDS))
        return batch

    def _observe(self, batch: Batch, seconds: float) -> None:
        """Measures how fast prompts are computed, where a batch is nearly all prompt."""
        prompt = sum(len(part.tokens) for part in batch.slices if len(part.tokens) > 1)
        if prompt >= PROMPT_TOKENS and prompt > 0.9 * batch.token_count:
            self._scheduler.observe_compute(prompt, seconds)

    def _output(self, tokens: list[Token], ends: list[End], now: float) -> StepOutput:
        starts = tuple(self._scheduler.take_starts())
        return StepOutput(tuple(tokens), tuple(ends), self.statistics(), starts, self._map(now))

    def _map(self, now: float) -> CacheMap | None:
        """What the pages hold, if it has changed, at most twice a second."""
        if now < self._next_map:
            return None
        self._next_map = now + MAP_SECONDS
        shown, self._shown = self._shown, self._scheduler.cache_map()
        return self._shown if self._shown != shown else None

    def _execute(self, batch: Batch) -> tuple[Batch, list[Sampled | None]]:
        """Runs a Batch; where that raises, its halves, down to the sequences that fail alone, which end.

        Running a slice again writes the same K and V to the same places, so what had been done does no harm. Transfers
        have begun by then, and are not ordered twice.
        Returns the part of the Batch that ran, and its results.
        """
        try:
            return batch, self._executor.execute(batch)
        except DeviceLostError:
            raise
        except Exception as error:  # one request must not end the others
            if not batch.slices:
                raise
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
