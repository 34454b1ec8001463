"""Decode speed of an engine by ranks, without a server: `python -m tests.bench.ranks --ranks 2 --sequences 16`.

Prints output tokens a second of one engine after the other, in turn, and their ratio to the first. `worker` is one
rank in a process of its own, `alone` one rank in the engine's process; numbers are ranks of one thread each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

from backend.compose_engine import ComposedEngine, Planned, compose_engine
from backend.compose_ranks import compose_ranks
from backend.engine_environment import engine_environment
from backend.engine_settings import EngineSettings
from backend.library.resolve import resolve
from backend.request import Request, Sampling

PROMPT, ANSWER = 128, 64


def settings_of(options: Any, ranks: int) -> EngineSettings:
    return EngineSettings(
        files=resolve(options.model), device=options.device, dtype=options.dtype, threads=options.threads,
        tensor_parallel=ranks, kv_pool=1 << 30,
    )  # fmt: skip


def compose(kind: str, options: Any) -> ComposedEngine:
    ranks = int(kind) if kind.isdigit() else 1
    settings = settings_of(options, ranks)
    if kind == "alone":
        return compose_engine(settings, _quiet)
    composed = compose_ranks(settings, _quiet, ranks, even_one=True)
    if isinstance(composed, Planned):
        raise SystemExit(f"{kind} was planned for one rank")
    return composed


def rate(composed: ComposedEngine, sequences: int, seed: int) -> float:
    """Output tokens a second, from the moment when all prompts are computed."""
    engine = composed.engine
    for number in range(sequences):
        prompt = tuple((seed * 7919 + number * 104729 + place * 31) % 40000 + 10 for place in range(PROMPT))
        engine.submit(Request(id=f"{seed}-{number}", prompt=prompt, sampling=Sampling(max_tokens=ANSWER)))
    begun: set[str] = set()
    began, tokens = 0.0, 0
    while engine.has_work:
        given = engine.step().tokens
        if began:
            tokens += len(given)
        begun |= {token.request for token in given}
        if len(begun) == sequences and not began:
            began = time.perf_counter()
    return tokens / (time.perf_counter() - began)


def main() -> int:
    options = _options()
    # What an engine's process has: read when torch and numba are loaded, which they are not yet.
    os.environ.update(engine_environment(settings_of(options, 1), os.environ))
    kinds = options.engines.split(",")
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(options.turns):
        for kind in kinds:
            composed = compose(kind, options)
            rate(composed, options.sequences, 1000 + turn)  # warms up
            rates[kind] += [rate(composed, options.sequences, turn * options.runs + run) for run in range(options.runs)]
            composed.engine.close()
    first = statistics.median(rates[kinds[0]])
    for kind, values in rates.items():
        median = statistics.median(values)
        print(f"{kind:<8} {median:8.1f} tok/s ({min(values):.1f}-{max(values):.1f}), {median / first:.2f} of the first")
    return 0


def _quiet(stage: str, done: int, total: int) -> None:
    pass


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engines", default="alone,worker,2", help="comma-separated: alone, worker, or a number of ranks"
    )
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
