"""The program of a test's engine process: the real process and engine over a deterministic executor, without torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass

import msgspec

from backend.batch import Batch, Sampled
from backend.engine import Engine
from backend.engine_environment import worker_environment
from backend.engine_process import Composed, OnProgress, main
from backend.engine_settings import EngineSettings
from backend.errors import BrokenModelError
from backend.executor import Executor
from backend.measured_rank import MeasuredRank
from backend.one_batch import OneBatch
from backend.planner.plan import MemoryTerm, Plan
from backend.scheduler import Scheduler
from backend.workers.meeting import Meeting
from backend.workers.ranked_executor import RankedExecutor
from backend.workers.worker_messages import Load, Loaded
from backend.workers.workers import Workers
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout, build_layout
from kvcache.transfer import TransferDone
from tests.fakes.engine_options import EngineOptions
from tests.fakes.hashing import PAGES, HashingRank
from tests.fakes.plans import plan
from tests.fakes.rank_options import LAYERS, RankOptions

MAX_CONTEXT = 4096
STEP_TOKENS = 256


class HashingExecutor(OneBatch):
    """A HashingRank in the engine's own process."""

    def __init__(self, options: EngineOptions, page_tokens: int) -> None:
        self._options = options
        self._steps = 0
        self._rank = HashingRank(page_tokens)

    def execute(self, batch: Batch) -> list[Sampled | None]:
        time.sleep(self._options.step_seconds)
        self._steps += 1
        if any(self._options.poison in part.tokens for part in batch.slices):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._rank.execute(batch)

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        return []

    def measure(self) -> tuple[MeasuredRank, ...]:
        """As much more each time as steps were computed."""
        return (MeasuredRank(0, "cpu", (MemoryTerm("weights", 1234),), 5000 + self._steps),)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class ComposedForTest:
    engine: Engine
    plan: Plan
    weights_bytes: tuple[int, ...]
    devices: tuple[str, ...]
    rank_pids: tuple[int, ...]
    max_context: int
    vocabulary: int


def compose(options: EngineOptions, settings: EngineSettings, on_progress: OnProgress) -> Composed:
    on_progress("read", 0, 0)
    time.sleep(options.start_seconds)
    if options.start_error:
        raise BrokenModelError(options.start_error, "It is a test.", "Write another.")
    if options.crash_at_start:
        raise RuntimeError("a bug in start-up")
    on_progress("load", 100, 100)
    layout = build_layout(LAYERS, 4)
    made = plan(
        model=settings.files.name,
        dtype="float32",
        max_context=MAX_CONTEXT,
        step_tokens=STEP_TOKENS,
        page_bytes=layout.page_bytes,
        pages=PAGES,
    )
    scheduler = Scheduler(
        CacheManager(layout, PAGES), max_context=MAX_CONTEXT, max_sequences=16, step_tokens=STEP_TOKENS
    )
    executor, pids = compose_executor(options, settings, made, layout)
    engine = Engine(scheduler, executor, time.monotonic)
    return ComposedForTest(engine, made, (1234,) * len(pids), ("cpu",) * len(pids), pids, MAX_CONTEXT, 997)


def compose_executor(
    options: EngineOptions, settings: EngineSettings, made: Plan, layout: CacheLayout
) -> tuple[Executor, tuple[int, ...]]:
    """The executor, with ranks in processes of their own where the options want some, and the ranks' processes."""
    if options.ranks == 0:
        return HashingExecutor(options, layout.groups[0].page_tokens), (os.getpid(),)
    command = RankOptions(step_seconds=options.step_seconds).command()
    workers = Workers.spawn(options.ranks, command, worker_environment(settings, options.ranks, os.environ))
    orders = [Load(settings, made, rank, LAYERS, Meeting("", "")) for rank in range(options.ranks)]
    workers.prepare(orders, Loaded, lambda rank, loading: None)
    workers.ready(slow=True)
    return RankedExecutor(workers), workers.pids


if __name__ == "__main__":
    chosen = msgspec.json.decode(sys.argv[1], type=EngineOptions)
    main(sys.argv[2:], lambda settings, on_progress: compose(chosen, settings, on_progress))
