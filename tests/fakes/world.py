"""World: an engine over a paged executor and a clock of its own, which checks each thing that it is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from backend.batch import Batch
from backend.engine import Engine
from backend.events import End, Start, Token
from backend.messages import StepOutput
from backend.request import Request
from backend.scheduler import Scheduler
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout
from tests.fakes.executor import VOCABULARY, PagedExecutor, alone
from tests.fakes.staged import StagedExecutor, alone_on_stages
from tests.fakes.tiers import FakeDisk, FakeTiers

MAX_CONTEXT = 40
POISON = VOCABULARY  # a prompt token that no answer contains: a batch with it makes a failing executor raise


@dataclass(frozen=True)
class Limits:
    """How tight things are. `spare` are pages beyond what a sequence of `fits` positions needs."""

    fits: int
    spare: int
    max_sequences: int
    step_tokens: int
    recompute_lengths: tuple[int, ...]
    scaled_past: int | None = None
    host_pages: int = 0
    disk_pages: int | None = None
    seed: int = 0
    failures: float = 0.0
    stages: int = 0  # 0: one executor without stages
    depth: int = 1


def some_tokens(count: int, seed: int) -> tuple[int, ...]:
    """Drawing each token by itself would take longer than running them."""
    return tuple((seed * 31 + place * place * 7 + place * seed) % VOCABULARY for place in range(count))


def common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


@dataclass
class Told:
    """What the engine told of one request."""

    request: Request
    tokens: list[Token] = field(default_factory=list)
    end: End | None = None
    start: Start | None = None

    @property
    def known(self) -> tuple[int, ...]:
        return (*self.request.prompt, *self.request.prior, *(token.token for token in self.tokens))


class World:
    """An engine over a paged executor and a clock of its own, which checks each thing it is told."""

    def __init__(self, layout: CacheLayout, how: Limits) -> None:
        self.layout, self.how, self.now, self.failing = layout, how, 0.0, False
        pages = CacheManager(layout, 1).most_pages(how.fits, how.step_tokens) + how.spare
        self.executor, disk = self._on_stages(pages) if how.stages else self._in_one(pages)
        self.scheduler = Scheduler(
            CacheManager(layout, pages, host_pages=how.host_pages, disk=disk),
            max_context=MAX_CONTEXT,
            max_sequences=how.max_sequences,
            step_tokens=how.step_tokens,
            recompute_lengths=how.recompute_lengths,
            scaled_past=how.scaled_past,
        )
        self.engine = Engine(self.scheduler, self.executor, lambda: self.now)
        self.told: dict[str, Told] = {}
        self.cancelled: set[str] = set()
        self.breaks = 0

    def _in_one(self, pages: int) -> tuple[PagedExecutor, FakeDisk | None]:
        how = self.how
        disk = None if how.disk_pages is None else FakeDisk(how.disk_pages)
        tiers = FakeTiers(how.host_pages, disk, how.seed, how.failures)
        return PagedExecutor(self.layout, pages, how.recompute_lengths, self._refuse, how.scaled_past, tiers), disk

    def _on_stages(self, pages: int) -> tuple[StagedExecutor, FakeDisk | None]:
        how = self.how
        executor = StagedExecutor(
            self.layout,
            pages,
            how.stages,
            depth=how.depth,
            seed=how.seed,
            refuse=self._refuse,
            recompute_lengths=how.recompute_lengths,
            scaled_past=how.scaled_past,
            host_pages=how.host_pages,
            disk_pages=how.disk_pages,
            failures=how.failures,
        )
        return executor, executor.disk

    def break_off(self, lost: tuple[int, ...], mending: int) -> None:
        """These stages, modulo their number, lose their pages."""
        if isinstance(self.executor, StagedExecutor):
            self.executor.break_off(tuple({one % self.how.stages for one in lost}), mending)
            self.breaks += 1

    def _refuse(self, batch: Batch) -> None:
        if any(POISON in part.tokens for part in batch.slices):
            raise RuntimeError("CUDA out of memory: tried to allocate\nTraceback: secret")
        if self.failing and len(batch.slices) > 1:
            raise MemoryError

    def submit(self, request: Request) -> None:
        name = f"request {len(self.told)}"
        request = msgspec.structs.replace(request, id=name)
        self.told[name] = Told(request)
        self.engine.submit(request)

    def step(self) -> StepOutput:
        before = len(self.executor.batches)
        output = self.engine.step()
        self.now += 1.0
        assert self.executor.faults == []
        for batch in self.executor.batches[before:]:
            assert batch.token_count <= self.how.step_tokens
            assert len(batch.slices) <= self.how.max_sequences
            assert batch.slices or batch.transfers
            numbers = [part.sequence for part in batch.slices]
            assert len(numbers) == len(set(numbers))
        for start in output.starts:
            self._check_start(start)
        for token in output.tokens:
            told = self.told[token.request]
            assert told.start is not None
            assert told.end is None
            assert token.index == len(told.request.prior) + len(told.tokens)
            told.tokens.append(token)
        for end in output.ends:
            assert self.told[end.request].end is None
            self.told[end.request].end = end
        return output

    def _check_start(self, start: Start) -> None:
        """A request starts once, and nothing is cached of it that no other one of its salt had."""
        told = self.told[start.request]
        assert told.start is told.end is None
        told.start = start
        others = [one for one in self.told.values() if one.request.cache_salt == told.request.cache_salt]
        common = [common_prefix(told.known, one.known) for one in others if one is not told and one.start]
        assert 0 <= start.cached_tokens <= min(max(common, default=0), len(told.request.prompt))

    def run_dry(self) -> None:
        """Steps until nothing is left, within a bound that any starvation would pass."""
        # Each step moves the first sequence on. Its tokens are computed at most once a recompute length, and again
        # after a preemption; the factor stands for these.
        tokens = sum(len(told.request.prompt) + 25 for told in self.told.values() if told.end is None)
        bound = 10 + tokens * (2 + len(self.how.recompute_lengths))
        # What breaks has to be computed again, and batches may keep the engine waiting.
        bound = (bound * (1 + self.breaks) + 20 * self.breaks) * (10 if self.how.stages else 1)
        if self.how.host_pages or self.how.disk_pages:
            # Steps that wait for transfers, each of which takes a few.
            bound *= 8
        while self.engine.has_work:
            self.step()
            bound -= 1
            assert bound > 0, "something starves"

    def be_idle(self) -> None:
        """Until nothing is left to be done for the disk."""
        for _ in range(1000):
            if self.engine.idle() is None:
                return
            self.scheduler.check_integrity()
        raise AssertionError("idle writes have no end")

    def finish(self) -> None:
        self.run_dry()
        self.be_idle()
        self.check_answers()

    def check_answers(self) -> None:
        assert all(told.end is not None for told in self.told.values())
        for told in self.told.values():
            self._check_answer(told)
        statistics = self.scheduler.statistics()
        assert (statistics.running, statistics.waiting, statistics.cache.pages_used) == (0, 0, 0)
        assert statistics.cache.pages_free + statistics.cache.pages_cached == statistics.cache.pages_total
        assert statistics.generation_tokens == sum(len(told.tokens) for told in self.told.values())

    def _check_answer(self, told: Told) -> None:
        request, end = told.request, told.end
        assert end is not None
        answer = [token.token for token in told.tokens]
        if end.reason == "error":
            assert answer == []
            if POISON in request.prompt and len(request.prompt) < self.scheduler.longest_sequence:
                assert "RuntimeError: CUDA out of memory" in end.message
                assert "secret" not in end.message
            else:
                assert len(request.prompt) >= self.scheduler.longest_sequence
            return
        how, longest = self.how, self.scheduler.longest_sequence
        if how.stages:
            expected = alone_on_stages(
                request, self.layout, how.stages, longest, how.recompute_lengths, how.scaled_past
            )
        else:
            expected = alone(request, self.layout, longest, how.recompute_lengths, how.scaled_past)
        if end.reason in ("stop", "length"):
            assert answer == expected
            full = [*request.prior, *answer]
            stopped = len(full) > request.sampling.min_tokens and full[-1:] and full[-1] in request.sampling.stop_tokens
            assert end.reason == ("stop" if stopped else "length")
        else:
            assert answer == expected[: len(answer)]
            assert request.timeout is not None if end.reason == "deadline" else request.id in self.cancelled
