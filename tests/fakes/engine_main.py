"""The program of a test's engine process: the real process over a deterministic engine, without torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))
from engine_options import EngineOptions, next_token

from backend.engine_process import Composed, OnProgress, main
from backend.engine_settings import EngineSettings
from backend.errors import BrokenModelError
from backend.events import End, EngineStatistics, Token
from backend.messages import StepOutput
from backend.planner.plan import Plan, Rank


class InterimEngine:
    def __init__(self, options):
        self.o = options
        self.live = {}
        self.cancelled = []
        self.steps = self.generated = 0

    @property
    def has_work(self):
        return bool(self.live or self.cancelled)

    def submit(self, request):
        self.live[request.id] = (request, list(request.prior))

    def cancel(self, request):
        if self.live.pop(request, None):
            self.cancelled.append(request)

    def step(self):
        time.sleep(self.o.step_seconds)
        tokens, ends = [], [End(name, "cancelled") for name in self.cancelled]
        self.cancelled = []
        for name, (request, output) in list(self.live.items()):
            if self.o.poison in request.prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            token = next_token([*request.prompt, *output])
            tokens.append(Token(name, len(output), token))
            output.append(token)
            self.generated += 1
            if len(output) >= request.sampling.max_tokens:
                ends.append(End(name, "length"))
                del self.live[name]
        self.steps += 1
        return StepOutput(
            tuple(tokens),
            tuple(ends),
            EngineStatistics(running=len(self.live), steps=self.steps, generation_tokens=self.generated),
        )


@dataclass(frozen=True)
class TestEngine:
    engine: InterimEngine
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
    plan = Plan(
        model=settings.files.name,
        architecture="Test",
        dtype="float32",
        weight_format="model",
        kv_format="model",
        tensor_parallel=1,
        pipeline_stages=1,
        ranks=(Rank(0, "cpu", ()),),
        max_context=4096,
        max_sequences=16,
        step_tokens=256,
        page_tokens=16,
        page_bytes=64,
        pages=1024,
        threads=1,
        reasons=(),
    )
    return TestEngine(InterimEngine(options), plan, (1234,), ("cpu",), 4096, 997)


if __name__ == "__main__":
    options = msgspec.json.decode(sys.argv[1], type=EngineOptions)
    main(sys.argv[2:], lambda settings, on_progress: compose(options, settings, on_progress))
