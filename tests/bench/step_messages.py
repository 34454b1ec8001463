"""What a step costs beside computing it, where ranks are processes: `python -m tests.bench.step_messages`.

An executor over two workers whose model does nothing runs decode batches of 1 and 16 sequences of 250 pages each. A
step is encoded, sent, decoded by both, answered and taken in.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

from backend.batch import Batch, PageSpan, SampleTask, Slice
from backend.engine_environment import worker_environment
from backend.engine_settings import EngineSettings
from backend.library.files import ModelFiles
from backend.request import Sampling
from backend.workers.meeting import Meeting
from backend.workers.ranked_executor import RankedExecutor
from backend.workers.worker_messages import Load, Loaded, Warm, WarmUp
from backend.workers.workers import Workers
from tests.fakes.plans import plan
from tests.fakes.rank_options import LAYERS, RankOptions

PAGES, PAGE_TOKENS = 250, 16
SETTINGS = EngineSettings(files=ModelFiles(name="none", format="gguf", weights=(), folder="", bytes=0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    command = RankOptions(empty=True).command()
    workers = Workers.spawn(options.ranks, command, worker_environment(SETTINGS, options.ranks, os.environ))
    orders = [Load(SETTINGS, plan(), rank, LAYERS, Meeting("", "")) for rank in range(options.ranks)]
    workers.prepare(orders, Loaded, lambda rank, loading: None)
    workers.prepare([WarmUp()] * options.ranks, Warm, lambda rank, loading: None)
    workers.ready(slow=True)
    executor = RankedExecutor(workers)
    try:
        for sequences in (1, 16):
            print(_line(sequences, _measure(executor, sequences, options.steps)), flush=True)
    finally:
        executor.close()
    return 0


def _measure(executor: RankedExecutor, sequences: int, steps: int) -> list[float]:
    """Microseconds of each step, the first hundred left out."""
    prompts = [list(range(PAGES * PAGE_TOKENS - steps // 2)) for _ in range(sequences)]
    outputs: list[list[int]] = [[1] for _ in prompts]
    pages = [[sequence * 1000 + page for page in range(PAGES)] for sequence in range(sequences)]
    tasks = [SampleTask(Sampling(), prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
    times: list[float] = []
    for step in range(steps + 100):
        batch = Batch(step, tuple(_decode(1000 * sequences + n, tasks[n], pages[n]) for n in range(sequences)))
        began = time.perf_counter()
        executor.execute(batch)
        times.append((time.perf_counter() - began) * 1e6)
        executor.transfers_done()
        for number, output in enumerate(outputs):
            output.append(step)
            if step % PAGE_TOKENS == 0:
                pages[number].append(step)
    return times[100:]


def _decode(sequence: int, task: SampleTask, pages: list[int]) -> Slice:
    length = len(task.prompt) + len(task.output)
    return Slice(sequence, length - 1, task.output[-1:], len(task.prompt), length, (PageSpan(0, pages),), task)


def _line(sequences: int, times: list[float]) -> str:
    tenths = statistics.quantiles(times, n=10)
    return f"{sequences:2} sequences: {tenths[4]:.0f} us a step (p50), {tenths[8]:.0f} (p90)"


if __name__ == "__main__":
    sys.exit(main())
