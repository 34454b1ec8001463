"""The program of a test's engine process: the real process and engine over a deterministic executor, without torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass

import msgspec

from backend.batch import Batch, Sampled, Slice
from backend.engine import Engine
from backend.engine_process import Composed, OnProgress, main
from backend.engine_settings import EngineSettings
from backend.errors import BrokenModelError
from backend.planner.plan import Plan
from backend.scheduler import Scheduler
from kvcache.cache_manager import CacheManager
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.transfer import TransferDone
from tests.fakes.engine_options import EngineOptions, next_token
from tests.fakes.plans import plan

MAX_CONTEXT = 4096
STEP_TOKENS = 256
PAGES = 1024


class HashingExecutor:
    """Answers with a hash of the tokens it was fed, as a model with a cache would see them: kept in pages."""

    def __init__(self, options: EngineOptions, page_tokens: int) -> None:
        self._options = options
        self._pages = [[0] * page_tokens for _ in range(PAGES)]

    def execute(self, batch: Batch) -> list[Sampled | None]:
        time.sleep(self._options.step_seconds)
        results: list[Sampled | None] = []
        for part in batch.slices:
            if self._options.poison in part.tokens:
                os.kill(os.getpid(), signal.SIGKILL)
            fed = self._feed(part)
            results.append(None if part.sample is None else Sampled(next_token(fed)))
        return results

    def _feed(self, part: Slice) -> list[int]:
        """Writes the slice's tokens into its pages: all tokens up to its end."""
        own = [self._pages[page] for page in part.spans[0].ids]
        size = len(self._pages[0])
        for position, token in enumerate(part.tokens, part.start):
            own[position // size][position % size] = token
        return [token for page in own for token in page][: part.start + len(part.tokens)]

    def transfers_done(self, patience: float = 0.0) -> list[TransferDone]:
        return []

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class ComposedForTest:
    engine: Engine
    plan: Plan
    weights_bytes: tuple[int, ...]
    devices: tuple[str, ...]
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
    layout = build_layout((LayerCache(Keeps.FULL, None, 1, 2, 2),), 4)
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
    engine = Engine(scheduler, HashingExecutor(options, layout.groups[0].page_tokens), time.monotonic)
    return ComposedForTest(engine, made, (1234,), ("cpu",), MAX_CONTEXT, 997)


if __name__ == "__main__":
    chosen = msgspec.json.decode(sys.argv[1], type=EngineOptions)
    main(sys.argv[2:], lambda settings, on_progress: compose(chosen, settings, on_progress))
