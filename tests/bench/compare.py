"""Drives our server, and optionally a peer in turn, through the standard workloads; README.md says how to use it."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from app.load.figures import MEASURES, Figures, over_runs
from app.load.prompts import Counter
from app.load.report import table
from app.load.run import Runs, run_workloads
from app.load.server import LoadServer
from app.load.workload import STANDARD
from tests.bench.served import ForeignClock, ServedProcess, served

_OURS = "shardwise serve starter --dtype bfloat16 --weights model --kv-format model --port {port}"
_BUSY = 0.05  # cores used by others, above which a run is suspect


@dataclass(frozen=True)
class Contender:
    """A server to start: its command line, and where it then listens under which model's name."""

    name: str
    command: list[str]
    url: str
    model: str


class Sitting(msgspec.Struct, kw_only=True):
    """What one start of one server gave. Memory in MiB, shares of 1."""

    name: str
    startup_seconds: float
    idle_rss: float
    idle_pss: float
    peak_rss: float = 0.0
    scheduler_share: float | None = None
    foreign_cores: dict[str, float] = {}
    runs: Runs = {}


def main() -> int:
    options = _options()
    contenders = [
        Contender(
            "shardwise",
            shlex.split(options.command.format(port=options.port)),
            f"http://127.0.0.1:{options.port}",
            options.model,
        )
    ]
    if options.peer_command:
        contenders.append(
            Contender(
                options.peer_name, shlex.split(options.peer_command), options.peer_url.rstrip("/"), options.peer_model
            )
        )
    sittings: list[Sitting] = []
    for turn in range(options.turns):
        for contender in contenders:
            print(f"== turn {turn + 1}/{options.turns}: {contender.name}", file=sys.stderr, flush=True)
            sittings.append(_sit(contender, options, options.seed + turn * options.runs))
    report = _report(sittings)
    print(report)
    if options.out:
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(sittings), indent=1) + b"\n")
    failed = sum(run.failed for sitting in sittings for runs in sitting.runs.values() for run in runs)
    return 1 if failed else 0


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command", default=_OURS, help="our server; {port} is filled in")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--runs", type=int, default=3, help="runs of each workload in a turn")
    parser.add_argument("--turns", type=int, default=1, help="starts of each server")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--workloads", default=",".join(workload.name for workload in STANDARD))
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, where a server has no /tokenize")
    parser.add_argument("--logs", type=Path, default=Path("/tmp"), help="folder for the servers' output")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--peer-command", help="another server's command line")
    parser.add_argument("--peer-name", default="peer")
    parser.add_argument("--peer-url", default="http://127.0.0.1:8124")
    parser.add_argument("--peer-model", default="starter")
    return parser.parse_args()


def _sit(contender: Contender, options: Any, seed: int) -> Sitting:
    log = options.logs / f"bench-{contender.name}.log"
    with served(contender.command, contender.url, contender.model, log) as process:
        time.sleep(3)
        sitting = Sitting(
            name=contender.name,
            startup_seconds=process.startup_seconds,
            idle_rss=process.resident_mib(),
            idle_pss=process.proportional_mib(),
        )
        asyncio.run(_drive(contender, process, sitting, options, seed))
        sitting.peak_rss = max(process.peak_mib, process.resident_mib())
    return sitting


async def _drive(contender: Contender, process: ServedProcess, sitting: Sitting, options: Any, seed: int) -> None:
    names = options.workloads.split(",")
    server = LoadServer(contender.url, model=contender.model, endpoint="completions", key=None, timeout=600)
    count = _counter(options.tokenizer)
    try:
        warm_up = True
        for workload in (workload for workload in STANDARD if workload.name in names):
            clock = ForeignClock(process)
            sitting.runs |= await run_workloads(
                server,
                [workload],
                runs=options.runs,
                seed=seed,
                warm_up=warm_up,
                count=count,
                progress=lambda message: print(message, file=sys.stderr, flush=True),
            )
            sitting.foreign_cores[workload.name] = clock.cores()
            warm_up = False
        sitting.scheduler_share = scheduler_share(await server.metrics())
    finally:
        await server.close()


def _counter(tokenizer: Path | None) -> Counter | None:
    if tokenizer is None:
        return None
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))

    async def count(text: str) -> int:
        return len(loaded.encode(text, add_special_tokens=True).ids)

    return count


def scheduler_share(metrics: str) -> float | None:
    """The scheduler's own work as a share of all steps' time, from our /metrics; None where it is not told."""
    totals = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name.startswith("shardwise:")
    }
    steps = totals.get("shardwise:step_seconds_total", 0.0)
    scheduling = totals.get("shardwise:scheduling_seconds_total")
    return scheduling / steps if scheduling is not None and steps else None


def _report(sittings: list[Sitting]) -> str:
    names = list(dict.fromkeys(sitting.name for sitting in sittings))
    merged = {name: _merged([sitting for sitting in sittings if sitting.name == name]) for name in names}
    lines: list[str] = []
    for name in names:
        own = [sitting for sitting in sittings if sitting.name == name]
        lines += [f"\n{name}", table(merged[name]), *_facts(own)]
    if len(names) == 2:
        lines += [f"\n{names[0]} / {names[1]}, of medians", *_ratios(merged[names[0]], merged[names[1]])]
    return "\n".join(lines)


def _merged(sittings: list[Sitting]) -> Runs:
    merged: dict[str, list[Figures]] = {}
    for sitting in sittings:
        for workload, runs in sitting.runs.items():
            merged.setdefault(workload, []).extend(runs)
    return merged


def _facts(sittings: list[Sitting]) -> list[str]:
    def middle(name: str) -> float:
        return statistics.median(getattr(sitting, name) for sitting in sittings)

    shares = [sitting.scheduler_share for sitting in sittings if sitting.scheduler_share is not None]
    busy = {
        workload: cores for sitting in sittings for workload, cores in sitting.foreign_cores.items() if cores > _BUSY
    }
    return [
        f"start to first token {middle('startup_seconds'):.1f} s; resident idle {middle('idle_rss'):.0f} MiB "
        f"(proportional {middle('idle_pss'):.0f}), peak {middle('peak_rss'):.0f} MiB",
        *([f"scheduler's share of a step {statistics.median(shares):.1%}"] if shares else []),
        *(f"suspect: others used {cores:.2f} cores during {workload}" for workload, cores in busy.items()),
    ]


def _ratios(ours: Runs, theirs: Runs) -> list[str]:
    lines: list[str] = []
    for workload in (name for name in ours if name in theirs):
        mine, other = over_runs(ours[workload]), over_runs(theirs[workload])
        cells = [
            f"{name} {mine[name].median / other[name].median:.2f}"
            for name in MEASURES
            if name in mine and name in other and other[name].median
        ]
        lines.append(f"{workload:<12} {'  '.join(cells)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
