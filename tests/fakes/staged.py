"""StagedExecutor: a model of a pipeline. Each stage has pages of its own, and several batches are on their way.

A stage computes batches in the order in which they were begun, each after the stage before has; how far each has come
when the engine asks is a matter of chance. Breaks void what is in flight, and empty the pages of the stages that are
lost: reading one of them is a fault, as any impossible access is, and `alone` knows the right answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from backend.batch import Batch, PageSpan, Sampled, Slice
from backend.ending import answer_end
from backend.executor import PipelineBrokenError
from backend.measured_rank import MeasuredRank
from backend.request import Request
from backend.standing import RankStanding, Standing
from kvcache.layout import CacheLayout
from kvcache.transfer import TransferDone
from tests.fakes.executor import VOCABULARY, Memory, PagedMemory, PlainMemory, TinyModel, check_disjoint
from tests.fakes.tiers import PAGE_BYTES, Content, FakeDisk, FakeTiers

Pool = list[Content]


class StagedModel(TinyModel):
    """As TinyModel, whose layers come once a stage, one stage behind the other."""

    def run_stage(self, part: Slice, hidden: list[int], memory: Memory) -> tuple[list[int], int]:
        """What the tokens are for the next stage, and a hash of all that the newest one sees in this one."""
        hidden = [self.layers(memory, position, value) for position, value in enumerate(hidden, part.start)]
        return hidden, self.everything(part, memory)

    def begin(self, part: Slice) -> list[int]:
        return [self.embedded(part, position, token) for position, token in enumerate(part.tokens, part.start)]

    @staticmethod
    def token(seen: list[int]) -> int:
        return hash(tuple(seen)) % VOCABULARY


@dataclass
class StageMemory:
    """What one stage keeps."""

    pool: Pool
    tiers: FakeTiers
    over: dict[int, TransferDone] = field(default_factory=dict)


@dataclass
class Flight:
    """A batch on its way: how many stages have run it, and what they handed on for each slice.

    `excused`: one before it failed, so it may miss what that one did not write; nobody takes in what it brings.
    """

    batch: Batch
    hidden: list[list[int]]
    seen: list[list[int]]
    ran: int = 0
    error: Exception | None = None
    faults: list[str] = field(default_factory=list)
    excused: bool = False


class StagedExecutor:
    """An Executor over `stages`. `depth` may be set at any time; `patience` is the chance that nothing is ready.

    refuse: asked before a batch is run, and may raise, as a device would; its exception is told by `finish`.
    """

    def __init__(
        self,
        layout: CacheLayout,
        pages: int,
        stages: int,
        *,
        depth: int | None = None,
        seed: int = 0,
        refuse: Callable[[Batch], None] = lambda batch: None,
        recompute_lengths: tuple[int, ...] = (),
        scaled_past: int | None = None,
        host_pages: int = 0,
        disk_pages: int | None = None,
        failures: float = 0.0,
    ) -> None:
        self._layout, self._pages = layout, pages
        self._model = StagedModel(layout, recompute_lengths, scaled_past)
        self._chance, self._refuse = Random(seed), refuse
        self._host_pages, self._disk_pages, self._failures = host_pages, disk_pages, failures
        self._stages = [self._empty(seed + stage) for stage in range(stages)]
        self._flights: deque[Flight] = deque()
        self._running: set[int] = set()
        self._lost: tuple[int, ...] | None = None
        self._mending = 0
        self._told: Standing | None = None
        self.depth = stages if depth is None else depth
        self.batches: list[Batch] = []
        self.faults: list[str] = []
        self.delay = 0.3

    def _empty(self, seed: int) -> StageMemory:
        disk = None if self._disk_pages is None else FakeDisk(self._disk_pages)
        return StageMemory([{} for _ in range(self._pages)], FakeTiers(self._host_pages, disk, seed, self._failures))

    @property
    def disk(self) -> StagedDisk | None:
        """What the cache is told of the disk."""
        return None if self._disk_pages is None else StagedDisk(self._stages[0].tiers.disk)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def broken(self) -> bool:
        return self._lost is not None

    def begin(self, batch: Batch) -> None:
        if len(self._flights) >= self.depth:
            self.faults.append("more batches are in flight than may be")
        self.batches.append(batch)
        self.faults += check_disjoint(batch, self._layout)
        kept = replace(batch, slices=tuple(replace(part, spans=_copied(part.spans)) for part in batch.slices))
        if batch.until is not None and any(part.sample for part in batch.slices):
            self.faults.append("a batch samples that not all stages compute")
        hidden = [self._model.begin(part) for part in kept.slices]
        self._flights.append(Flight(kept, hidden, [[] for _ in kept.slices]))
        if self._lost is None:
            self._running |= {one.number for one in batch.transfers}
            self._advance()

    def finish(self, patience: float | None = None) -> list[Sampled | None] | None:
        if not self._flights:
            raise RuntimeError("no batch is in flight")
        if self._lost is not None:
            if patience is not None and self._mending > 0:
                self._mending -= 1
                return None
            return self._mend()
        if patience is not None and self._chance.random() < self.delay:
            self._advance()
            return None
        oldest = self._flights[0]
        while oldest.ran < len(self._stages):
            self._run(oldest)
        self._flights.popleft()
        if oldest.error is not None:
            for other in self._flights:
                other.excused = True
            raise oldest.error
        if not oldest.excused:
            self.faults += oldest.faults
        tokens = [Sampled(self._model.token(seen)) for seen in oldest.seen]
        return [None if part.sample is None else one for part, one in zip(oldest.batch.slices, tokens, strict=True)]

    def execute(self, batch: Batch) -> list[Sampled | None]:
        self.begin(batch)
        results = self.finish()
        if results is None:
            raise RuntimeError("a batch ended without results")
        return results

    def break_off(self, lost: tuple[int, ...], mending: int = 0) -> None:
        """Now: these stages lose all they keep, and `finish` has nothing for so many calls. A break of a break adds."""
        self._lost = tuple(sorted({*(self._lost or ()), *lost}))
        self._mending = mending
        self._running.clear()
        for number, stage in enumerate(self._stages):
            stage.over.clear()
            stage.tiers.forget_running()
            if number in lost:
                self._stages[number] = self._empty(self._chance.randrange(1000))

    def _mend(self) -> None:
        lost, self._lost = self._lost, None
        self._flights.clear()
        raise PipelineBrokenError(lost or ())

    def _advance(self) -> None:
        """Some stages move on, some do not."""
        for flight in self._flights:
            while flight.ran < len(self._stages) and self._chance.random() < 0.5:
                if any(other.ran <= flight.ran for other in self._before(flight)):
                    break
                self._run(flight)

    def _before(self, flight: Flight) -> list[Flight]:
        flights = list(self._flights)
        return flights[: flights.index(flight)]

    def _run(self, flight: Flight) -> None:
        """The next stage computes this batch, or only begins its transfers where an earlier one could not."""
        stage, batch = self._stages[flight.ran], flight.batch
        stage.tiers.begin(batch.transfers, stage.pool)
        skipped = batch.until is not None and flight.ran >= batch.until
        flight.ran += 1
        try:
            if flight.ran == 1:
                self._refuse(batch)
        except (RuntimeError, MemoryError) as error:
            flight.error = error
        for number, part in enumerate(() if skipped or flight.error is not None else batch.slices):
            memory = PagedMemory(self._layout, stage.pool, part)
            try:
                flight.hidden[number], seen = self._model.run_stage(part, flight.hidden[number], memory)
            except (LookupError, IndexError) as fault:
                flight.faults.append(f"stage {flight.ran - 1}, sequence {part.sequence}: {fault!r}")
                seen = 0
            flight.seen[number].append(seen)

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        if self._lost is not None:
            self._mending = max(0, self._mending - 1)
            return []
        for stage in self._stages:
            stage.over |= {one.number: one for one in stage.tiers.done(stage.pool, patience)}
        over = [number for number in self._running if all(number in stage.over for stage in self._stages)]
        self._running.difference_update(over)
        return [self._end([stage.over.pop(number) for stage in self._stages]) for number in sorted(over)]

    def _end(self, shares: list[TransferDone]) -> TransferDone:
        succeeded = all(one.succeeded for one in shares)
        return TransferDone(shares[0].number, succeeded, PAGE_BYTES if succeeded else 0, 0.001 if succeeded else 0.0)

    def standing(self) -> Standing | None:
        lost = self._lost if self._mending and self._lost else ()
        states = ["lost" if stage in lost else "ready" for stage in range(len(self._stages))]
        ranks = tuple(
            RankStanding(one, one, f"peer{one}", 100 + one, "cpu", 1, state) for one, state in enumerate(states)
        )
        now = Standing(ranks, "a stage is being replaced" if self._mending else "")
        if now == self._told:
            return None
        self._told = now
        return now

    def measure(self) -> tuple[MeasuredRank, ...]:
        return ()

    def close(self) -> None:
        self._flights.clear()


class StagedDisk(FakeDisk):
    """The first stage's records, of which others may lack some."""

    def __init__(self, first: FakeDisk | None) -> None:
        super().__init__(0)
        if first is not None:
            self.records = first.records


def _copied(spans: tuple[PageSpan, ...]) -> tuple[PageSpan, ...]:
    return tuple(PageSpan(span.first, tuple(span.ids)) for span in spans)


def alone_on_stages(
    request: Request,
    layout: CacheLayout,
    stages: int,
    limit: int,
    recompute_lengths: tuple[int, ...] = (),
    scaled_past: int | None = None,
) -> list[int]:
    """The answer that this request gets when nothing else runs, `prior` left out."""
    model = StagedModel(layout, recompute_lengths, scaled_past)
    output, computed = list(request.prior), 0
    memories = [PlainMemory() for _ in range(stages)]
    while answer_end(request, output, limit) is None:
        tokens = (*request.prompt, *output)
        part = Slice(0, computed, tokens[computed:], len(request.prompt), len(tokens), (), None)
        hidden, seen = model.begin(part), []
        for memory in memories:
            hidden, one = model.run_stage(part, hidden, memory)
            seen.append(one)
        output.append(model.token(seen))
        computed = 0 if len(tokens) in recompute_lengths else len(tokens)
    return output[len(request.prior) :]
