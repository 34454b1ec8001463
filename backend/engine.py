"""Engine: one model's step: schedule, execute, commit. Where batches run is left to the Executor.

An executor with several batches in flight is kept full: a step begins as many as are lacking, and commits the oldest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from backend.batch import Batch, Sampled
from backend.errors import ShardwiseError
from backend.events import End, EngineStatistics, Token
from backend.executor import DeviceLostError, Executor, PipelineBrokenError
from backend.measured_rank import MeasuredRank
from backend.messages import StepOutput
from backend.request import Request
from backend.scheduler import Scheduler
from backend.standing import Standing
from backend.trial import Trial
from kvcache.statistics import CacheMap

MESSAGE_CHARACTERS = 300
MAP_SECONDS = 0.5
PATIENCE_SECONDS = 0.05
NOTHING = Batch(0, ())
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
        self._flights: deque[_Flight] = deque()
        self._trial: Trial | None = None
        self._finished = float("-inf")
        self._mending = False

    def submit(self, request: Request) -> None:
        """Takes a request in; it runs from the next step on. Raises ValueError where its id is live."""
        self._scheduler.add(request, self._clock())

    def cancel(self, request_id: str) -> None:
        """Ends this request at the next step; unknown ids are ignored."""
        self._scheduler.cancel(request_id)

    @property
    def has_work(self) -> bool:
        """Whether `step` would bring anything."""
        return self._scheduler.has_work or bool(self._flights)

    def step(self) -> StepOutput:
        """One step. A request that the executor cannot run ends with an error; DeviceLostError passes through.

        It brings no tokens where the oldest batch takes longer than PATIENCE_SECONDS, as while stages are mended.
        """
        began = self._clock()
        self._begin_batches(began)
        begun = self._clock()
        done, sampled = self._finish_oldest()
        finished = self._clock()
        tokens, ends = self._scheduler.commit(done, sampled)
        ended = self._clock()
        self._step_seconds += ended - began
        self._scheduling_seconds += (begun - began) + (ended - finished)
        return self._output(tokens, ends, ended)

    def idle(self) -> StepOutput | None:
        """While there is no work, about once a second: has pages put on disk that are only in memory.

        None where nothing is to be told; else it likes to be called again soon.
        """
        # Stages that are mended move while the executor is asked something.
        done = self._executor.transfers_done(PATIENCE_SECONDS if self._mending else 0.0)
        self._scheduler.transfers_done(done)
        if not self._flights and (batch := self._scheduler.idle()).transfers:
            self._begin(batch)
        if self._flights:
            self._finish_oldest()
        standing = self.standing()
        waits = self._mending or self._flights or self._scheduler.awaits_transfers
        if not done and standing is None and not waits:
            return None
        return self._output([], [], self._clock(), standing)

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

    def standing(self) -> Standing | None:
        """Where the ranks are and what is being mended, if that has changed since the last call."""
        standing = self._executor.standing()
        if standing is not None:
            self._mending = standing.mending
        return standing

    def _begin_batches(self, now: float) -> None:
        """Fills the executor. Where everything awaits transfers, waits a little for one, so as not to spin."""
        executor, scheduler = self._executor, self._scheduler
        scheduler.transfers_done(executor.transfers_done())
        if self._trial is not None or executor.in_flight >= executor.depth:
            scheduler.expire(now)
            return
        while executor.in_flight < executor.depth:
            batch = scheduler.schedule(now, executor.depth)
            if not batch.slices and not batch.transfers:
                break
            self._begin(batch)
        if not self._flights and scheduler.awaits_transfers:
            scheduler.transfers_done(executor.transfers_done(PATIENCE_SECONDS))

    def _begin(self, batch: Batch) -> None:
        self._executor.begin(batch)
        self._flights.append(_Flight(batch, self._clock()))

    def _finish_oldest(self) -> tuple[Batch, list[Sampled | None]]:
        """What the oldest batch brought, or the part of it that ran; NOTHING where it is not over or is void."""
        while self._flights or self._begin_part():
            flight = self._flights[0]
            try:
                sampled = self._executor.finish(PATIENCE_SECONDS)
            except DeviceLostError:
                raise
            except PipelineBrokenError as broken:
                self._flights.clear()
                self._trial = None
                self._scheduler.mend(broken.lost)
                return NOTHING, []
            except Exception as error:  # one request must not end the others
                if not flight.batch.slices:
                    raise
                self._flights.popleft()
                self._fail(flight, error)
                continue
            if sampled is None:
                return NOTHING, []
            self._flights.popleft()
            self._pass(flight, sampled)
            if self._trial is None:
                return flight.batch, sampled
        if self._trial is None:
            return NOTHING, []
        trial, self._trial = self._trial, None
        return trial.result()

    def _begin_part(self) -> bool:
        """Begins what is next of a batch that failed, if anything is, once nothing is in flight any more."""
        while self._trial is not None and (part := self._trial.next()) is not None:
            # Sequences may have ended while earlier parts ran.
            part = self._scheduler.again(part)
            if part.slices:
                self._begin(part)
                return True
        return False

    def _fail(self, flight: _Flight, error: Exception) -> None:
        """A batch failed: what is in flight behind it is void, and it is run again by halves; or the culprit ends."""
        if flight.void:
            return
        if self._trial is None:
            self._trial = Trial()
            self._scheduler.void()
            for other in self._flights:
                other.void = True
        culprit = self._trial.failed(flight.batch)
        if culprit is not None:
            self._scheduler.fail(culprit, _explanation(error))

    def _pass(self, flight: _Flight, sampled: list[Sampled | None]) -> None:
        now = self._clock()
        self._observe(flight.batch, now - max(flight.begun, self._finished))
        self._finished = now
        if self._trial is not None and not flight.void:
            self._trial.passed(flight.batch, sampled)

    def _observe(self, batch: Batch, seconds: float) -> None:
        """Measures how fast prompts are computed, where a batch is nearly all prompt."""
        if batch.until is not None:
            return
        prompt = sum(len(part.tokens) for part in batch.slices if len(part.tokens) > 1)
        if prompt >= PROMPT_TOKENS and prompt > 0.9 * batch.token_count:
            self._scheduler.observe_compute(prompt, seconds)

    def _output(self, tokens: list[Token], ends: list[End], now: float, standing: Standing | None = None) -> StepOutput:
        starts = tuple(self._scheduler.take_starts())
        standing = standing or self.standing()
        return StepOutput(tuple(tokens), tuple(ends), self.statistics(), starts, self._map(now), standing)

    def _map(self, now: float) -> CacheMap | None:
        """What the pages hold, if it has changed, at most twice a second."""
        if now < self._next_map:
            return None
        self._next_map = now + MAP_SECONDS
        shown, self._shown = self._shown, self._scheduler.cache_map()
        return self._shown if self._shown != shown else None


@dataclass(slots=True)
class _Flight:
    """A batch that has begun, and when. `void`: what it brings does not count."""

    batch: Batch
    begun: float
    void: bool = False


def _explanation(error: Exception) -> str:
    """What a client may read of a failure: no traceback, one short line."""
    if isinstance(error, ShardwiseError):
        return str(error)
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"The engine could not run this request ({text[:MESSAGE_CHARACTERS]})."
