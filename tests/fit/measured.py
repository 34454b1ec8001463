"""Predicted beside measured memory of our own engine on a processor, its page pool filled by real requests.

    python -m tests.fit.measured            each KV format of the starter model; ends in one JSON line
    python -m tests.fit.measured --base     what the libraries hold, by kind of process: the planner's constants

An engine process is started as the server starts it, and asked as `/plan` asks it. Prompts run until every page of the
pool was written; what the process then holds is read from the system (Rss, and the most it ever was since it served).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.events import End
from backend.hardware.process_memory import read_process_memory
from backend.kernel_cache import kernel_cache
from backend.library.resolve import resolve
from backend.measured_rank import MeasuredRank
from backend.planner.plan import Plan
from backend.request import Request, Sampling
from backend.sizes import parse_size
from backend.supervisor import EngineSupervisor

FORMATS = ("model", "fp8", "int8", "k=model,v=fp8", "k=int8,v=fp8")
MIB = 1 << 20
PROMPT_TOKENS = 500
ANSWER_TOKENS = 24
# The pool is filled when less than this is left of it: the system backs it by huge pages, the last one not in full.
LEFT_BYTES = 2 * MIB
MOST_ROUNDS = 6


@dataclass(frozen=True)
class Finding:
    """One engine's memory, over its ranks: MiB planned, held at the end, held at the peak, and errors in percent."""

    predicted_mib: float
    measured_mib: float
    error_pct: float
    peak_mib: float
    peak_error_pct: float


def main() -> int:
    options = _options()
    settings = EngineSettings(
        files=resolve(options.model),
        device="cpu",
        kv_pool=parse_size(options.kv_pool),
        host_cache=0,
        weights=options.weights,
        tensor_parallel=options.tp,
        threads=options.threads,
    )
    if options.base:
        return asyncio.run(_base(settings))
    return asyncio.run(_formats(settings, options.formats.split("/")))


async def _formats(settings: EngineSettings, formats: Sequence[str]) -> int:
    found = {name: await _measure_warm(replace(settings, kv_format=name)) for name in formats}
    worst = max(one.error_pct for one in found.values())
    print(json.dumps({"formats": {name: asdict(one) for name, one in found.items()}, "max_error_pct": worst}))
    return 0


async def _measure_warm(settings: EngineSettings) -> Finding:
    """Measures an engine that finds its kernels compiled, as every start but a machine's first does."""
    before = _kernels()
    finding = await _measure(settings)
    if _kernels() == before:
        return finding
    print("Kernels were compiled for the first time, and the compiler kept memory: once more, with all of them there.")
    return await _measure(settings)


def _kernels() -> int:
    """How many kernels lie compiled in the cache."""
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or kernel_cache())
    return sum(1 for _ in folder.rglob("*.nbc"))


async def _measure(settings: EngineSettings) -> Finding:
    """Starts an engine, fills its pool, and prints what it holds beside the Plan."""
    async with _engine(settings) as engine:
        plan = engine.plan
        assert plan is not None
        ranks = await engine.measure()
        for number in range(MOST_ROUNDS):
            await _fill(engine, plan, seed=number)
            ranks = await engine.measure()
            if all(rank.untouched < LEFT_BYTES for rank in ranks):
                break
        peak = sum(read_process_memory(one.pid).peak for one in engine.status().ranks)
    _print_terms(plan, ranks)
    predicted = sum(term.bytes for rank in plan.ranks for term in rank.memory)
    held = sum(rank.resident for rank in ranks)
    of_held, of_peak = _error(predicted, held), _error(predicted, peak)
    print(f"  in all {_mib(predicted)} MiB predicted, {_mib(held)} held: {of_held:+.2f}%, ", end="")
    print(f"{_mib(peak)} at the peak: {of_peak:+.2f}%\n", flush=True)
    return Finding(_mib(predicted), _mib(held), abs(of_held), _mib(peak), abs(of_peak))


async def _fill(engine: EngineSupervisor, plan: Plan, seed: int) -> None:
    """As many prompts as the pool has room for, all at once, each of tokens of its own; answers are drawn."""
    chance = random.Random(seed)
    count = plan.pages * plan.page_tokens // PROMPT_TOKENS + 1
    prompts = [tuple(chance.randrange(10, 40_000) for _ in range(PROMPT_TOKENS)) for _ in range(count)]
    await asyncio.gather(*(_run(engine, f"{seed}-{number}", prompt) for number, prompt in enumerate(prompts)))


async def _run(engine: EngineSupervisor, name: str, prompt: tuple[int, ...]) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=1, logprobs=5, max_tokens=ANSWER_TOKENS)
    async for event in engine.generate(Request(id=name, prompt=prompt, sampling=sampling)):
        if isinstance(event, End) and event.reason != "length":
            raise RuntimeError(f"request {name} ended with {event.reason}: {event.message}")


async def _base(settings: EngineSettings) -> int:
    """The libraries' own memory after the warm-up, for each kind of process."""
    kinds = {
        "one rank, in the engine process": settings,
        "int8 weights": replace(settings, weights="int8"),
        "nf4 weights": replace(settings, weights="nf4"),
        "two ranks, each": replace(settings, tensor_parallel=2),
    }
    for name, wanted in kinds.items():
        async with _engine(wanted) as engine:
            ranks, plan, status = await engine.measure(), engine.plan, engine.status()
            assert plan is not None
            assert status.pid is not None
            held = ", ".join(f"{_mib(dict(_terms(rank))['libraries'])}" for rank in ranks)
            own = [read_process_memory(one.pid) for one in status.ranks]
            backed = ", ".join(f"{_mib(one.resident - (one.anonymous or 0))}" for one in own)
            print(f"{name:<34} libraries {held} MiB, of them backed by files {backed}; threads {plan.threads}")
            if len(ranks) > 1:
                joined = ", ".join(f"{_mib(dict(_terms(rank))['communication'])}" for rank in ranks)
                print(f"{'  communication, each':<34} {joined} MiB")
                print(f"{'  the engine process over them':<34} {_mib(read_process_memory(status.pid).resident)} MiB")
    return 0


@asynccontextmanager
async def _engine(settings: EngineSettings) -> AsyncIterator[EngineSupervisor]:
    engine = EngineSupervisor(settings)
    await engine.start()
    try:
        if not await engine.wait_ready(300):
            raise RuntimeError(f"the engine did not start: {engine.status().error}")
        yield engine
    finally:
        await engine.stop()


def _print_terms(plan: Plan, ranks: Sequence[MeasuredRank]) -> None:
    print(f"{plan.model}, weights {plan.weight_format}, K and V {plan.kv_format}, {len(ranks)} rank(s), {plan.dtype}")
    print(f"  {'term':<16}{'predicted MiB':>14}{'measured MiB':>14}")
    for rank, measured in zip(plan.ranks, ranks, strict=True):
        found = dict(_terms(measured))
        for term in rank.memory:
            print(f"  {term.name:<16}{_mib(term.bytes):>14.1f}{_mib(found.get(term.name, 0)):>14.1f}")
        unplanned = found.keys() - {term.name for term in rank.memory}
        for name in sorted(unplanned):
            print(f"  {name:<16}{'none':>14}{_mib(found[name]):>14.1f}")
        print(
            f"  rank {rank.rank}: held {_mib(measured.resident)} MiB, pages not written {_mib(measured.untouched)} MiB"
        )


def _terms(rank: MeasuredRank) -> list[tuple[str, int]]:
    return [(term.name, term.bytes) for term in rank.terms]


def _mib(size: int) -> float:
    return round(size / MIB, 1)


def _error(predicted: int, measured: int) -> float:
    return round((predicted - measured) / measured * 100, 2)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--formats", default="/".join(FORMATS), help="KV formats, with / between them")
    parser.add_argument("--kv-pool", default="512MiB")
    parser.add_argument("--weights", default="model")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--base", action="store_true", help="measure the libraries' own memory instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
