"""PipelineExecutor: the Executor over stages, on this machine and others. What breaks is `pipeline`'s to mend."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import count

from msgspec.structs import replace

from backend.batch import Batch, Sampled
from backend.errors import ShardwiseError
from backend.executor import DeviceLostError, PipelineBrokenError
from backend.measured_rank import MeasuredRank
from backend.standing import Standing
from backend.workers.step_codec import StepEncoder
from kvcache.transfer import TransferDone
from pipeline_ext.depth import DepthMeter
from pipeline_ext.messages import Loading, Refused
from pipeline_ext.pipeline import Ended, PipelineMachine
from pipeline_ext.transport import Transport

# How long a turn waits at most, so that machines and workers are looked at in time.
TURN_SECONDS = 0.25
MEASURE_SECONDS = 5.0
MOST_BATCHES = 8
# Batches after which a sequence that took part in none counts as ended, for the depth.
REMEMBERED_BATCHES = 2 * MOST_BATCHES

OnLoading = Callable[[int, int, Loading], None]


class StageRefusedError(ShardwiseError):
    """A machine cannot take its stage; in that machine's words."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.what, refused.why, refused.hint)
        self.code, self.exit_status = refused.code, refused.exit_status


class PipelineEndedError(DeviceLostError):
    """The stages cannot be brought together any more. `replan`: another Plan over the machines left may do."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.reason)
        self.replan = ended.replan


class PipelineExecutor:
    """An Executor. Batches that begin while stages are being joined are void, as those in flight are."""

    def __init__(self, machine: PipelineMachine, transport: Transport) -> None:
        """Owns the machine from now on, and lets it move whenever it is called."""
        self._machine, self._transport = machine, transport
        self._epoch = -1
        self._encoder = StepEncoder()
        self._in_flight = 0
        self._shown: Standing | None = None
        self._meter = DepthMeter(len(machine.crews), MOST_BATCHES)
        self._seen: OrderedDict[int, int] = OrderedDict()
        self._begun = count()

    def start(self, on_loading: OnLoading = lambda stage, rank, loading: None) -> None:
        """Waits until all stages stand for the first time; `on_loading` is told what each rank does.

        Raises StageRefusedError for what a person has to change, DeviceLostError where a worker was lost.
        """
        told: dict[str, Loading] = {}
        while not self._machine.standing:
            self._turn(TURN_SECONDS)
            for crew in self._machine.loading:
                for rank, worker in enumerate(crew.workers):
                    loading = crew.progress.get(worker)
                    if loading is not None and told.get(worker) != loading:
                        told[worker] = loading
                        on_loading(crew.stage, rank, loading)

    @property
    def depth(self) -> int:
        """See Executor."""
        return self._meter.depth(len(self._seen))

    @property
    def in_flight(self) -> int:
        """See Executor."""
        return self._in_flight

    def begin(self, batch: Batch) -> None:
        """See Executor."""
        self._turn(0.0)
        machine = self._machine
        self._in_flight += 1
        if machine.void or not machine.standing:
            machine.void = True
            return
        if machine.epoch != self._epoch:
            # Every decoder begins anew with the epoch.
            self._epoch, self._encoder = machine.epoch, StepEncoder()
        machine.begin(self._encoder.encode(batch), batch)
        self._remember(batch)

    def finish(self, patience: float | None = None) -> list[Sampled | None] | None:
        """See Executor. Raises RuntimeError, with a worker's words, for a batch that could not be run."""
        if not self.in_flight:
            raise RuntimeError("no batch is in flight")
        deadline = None if patience is None else self._transport.now() + patience
        wait = 0.0
        while True:
            self._turn(wait)
            if (results := self._results()) is not None:
                return results
            wait = TURN_SECONDS if deadline is None else min(TURN_SECONDS, deadline - self._transport.now())
            if wait <= 0.0:
                return None

    def execute(self, batch: Batch) -> list[Sampled | None]:
        """See Executor. Raises PipelineBrokenError as `finish` does; nothing may be in flight."""
        if self.in_flight:
            raise RuntimeError("batches are in flight")
        self.begin(batch)
        results = self.finish()
        if results is None:
            raise RuntimeError("a batch ended without results")
        return results

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        """See Executor. They come with the batches; workers are asked for them only where none is in flight."""
        self._turn(0.0)
        machine = self._machine
        if machine.void or not machine.standing:
            # They count as failed, which PipelineBrokenError tells.
            if patience and not self.in_flight:
                self._turn(patience)
            return []
        over = machine.flights.transfers_done()
        if over or not machine.flights.transfers_running:
            return over
        if not self.in_flight:
            machine.poll_transfers(patience)
        if patience:
            self._turn(patience)
        return [] if machine.void else machine.flights.transfers_done()

    def standing(self) -> Standing | None:
        """See Executor."""
        standing = self._machine.report()
        if standing == self._shown:
            return None
        self._shown = standing
        return standing

    def measure(self) -> tuple[MeasuredRank, ...]:
        """See Executor. Nothing, where the stages do not answer within a few seconds."""
        machine, deadline = self._machine, self._transport.now() + MEASURE_SECONDS
        asked = None
        while self._transport.now() < deadline:
            if machine.standing and asked != machine.epoch:
                asked = machine.epoch
                machine.measure()
            self._turn(TURN_SECONDS)
            measured = machine.measured() if asked == machine.epoch else None
            if measured is not None:
                return tuple(replace(one, rank=number) for number, one in enumerate(measured))
        return ()

    def close(self) -> None:
        """See Executor."""
        self._machine.close()

    def _turn(self, patience: float) -> None:
        self._machine.turn(patience)
        ended = self._machine.ended
        if ended is None:
            return
        if ended.refused is not None:
            raise StageRefusedError(ended.refused)
        raise PipelineEndedError(ended)

    def _results(self) -> list[Sampled | None] | None:
        """Those of the oldest batch, if all workers have answered. Raises what became of it."""
        machine = self._machine
        flight = None if self._is_broken() else machine.flights.complete()
        if flight is None:
            if self._is_broken() and machine.standing:
                self._in_flight = 0
                raise PipelineBrokenError(machine.take_void())
            return None
        machine.flights.take()
        self._in_flight -= 1
        if (error := flight.error) is not None:
            raise RuntimeError(error)
        if flight.samples and flight.tokens == flight.slices:
            self._meter.observe(flight.slices, machine.flights.times(flight), flight.over - flight.begun)
        return machine.flights.results(flight)

    def _is_broken(self) -> bool:
        """Whether what is in flight is void: but what was on its way when a stage began to move arrives."""
        return self._machine.void and not (self._machine.draining and len(self._machine.flights))

    def _remember(self, batch: Batch) -> None:
        """Which sequences are live: those that took part of late."""
        number = next(self._begun)
        for part in batch.slices:
            self._seen[part.sequence] = number
            self._seen.move_to_end(part.sequence)
        while self._seen and number - next(iter(self._seen.values())) > REMEMBERED_BATCHES:
            self._seen.popitem(last=False)
