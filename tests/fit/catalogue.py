"""Every model of the catalogue on every hardware string: `python -m tests.fit.catalogue` prints the slowest.

One process, offline. The time is the processor's, of what `shardwise fit` does after it has started: what else the
machine does is no part of it. `--limit 0.5` names slower answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass

from app.fit.text import as_text
from app.fitting import fit_reports
from backend.errors import ShardwiseError
from backend.library.model_table import catalogue
from backend.planner.fit.ask import FitAsk

# What people have and rent: of the README, the design and the decision tables.
HARDWARE = (
    "1x RTX-3060",
    "1x RTX-3090",
    "2x RTX-3090 pcie",
    "2x RTX-3090 nvlink",
    "1x RTX-4090",
    "2x RTX-4090",
    "1x RTX-5090",
    "1x L40S",
    "8x L40S",
    "1x A100-40GB",
    "8x A100-80GB",
    "1x H100-80GB",
    "4x H100-80GB",
    "8x H100-80GB",
    "8x H200",
    "4x B200",
    "1x RTX-3090 + 1x RTX-A6000",
    "2 nodes of 4x A100-80GB, ib-hdr",
    "2 nodes of 8x H100-80GB, ib-ndr",
    "cpu 32GiB",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One question: how long it took, and what went wrong (empty where nothing did)."""

    model: str
    hardware: str
    seconds: float
    failure: str


def answer(model: str, hardware: str, ask: FitAsk | None = None) -> Answer:
    """Asks, and prints into nothing."""
    began = time.process_time()
    try:
        (report,) = fit_reports(model, [hardware], ask or FitAsk(), offline=True)
        text, failure = as_text(report, 8), ""
        wide = max(map(len, text.splitlines()))
        if wide > 80:
            failure = f"a line of {wide} columns"
        if not report.plans:
            failure = "no plan"
    except ShardwiseError as error:
        failure = f"{type(error).__name__}: {error.what}"
    except Exception as error:  # noqa: BLE001 (what is no error of ours is a bug that this program is here to find)
        failure = f"BUG {type(error).__name__}: {error}"
    return Answer(model, hardware, time.process_time() - began, failure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=0.5, help="Seconds that an answer may take.")
    parser.add_argument("--slowest", type=int, default=10, help="How many of the slowest to print.")
    parser.add_argument("--every", type=int, default=1, help="Ask of every Nth model only.")
    parser.add_argument("--engine", choices=("shardwise", "vllm"), default="shardwise", help="Whose accounting.")
    parser.add_argument("--users", type=int, default=1, help="Answered at the same time.")
    parser.add_argument(
        "--goal", choices=("latency", "throughput", "cost"), default="latency", help="What ranks first."
    )
    options = parser.parse_args()
    ask = FitAsk(engine=options.engine, users=options.users, goal=options.goal)
    # vLLM is planned for on GPUs alone.
    places = [each for each in HARDWARE if options.engine == "shardwise" or not each.startswith("cpu")]
    names = [model.id for model in catalogue()][:: options.every]
    answers = [answer(model, hardware, ask) for model in names for hardware in places]
    failed = [each for each in answers if each.failure]
    slow = [each for each in answers if each.seconds > options.limit]
    for each in sorted(answers, key=lambda one: -one.seconds)[: options.slowest]:
        print(f"{each.seconds:7.3f} s  {each.model} on {each.hardware}")
    for failure, count in Counter(each.failure for each in failed).most_common():
        first = next(each for each in failed if each.failure == failure)
        print(f"failed {count} times: {first.model} on {first.hardware}: {failure}")
    for hardware, count in Counter(each.hardware for each in slow).most_common():
        print(f"slow {count} times: {hardware}")
    times = sorted(each.seconds for each in answers)
    print(
        f"{len(answers)} answers, {len(failed)} failed, {len(slow)} took more than {options.limit} s; "
        f"median {times[len(times) // 2] * 1000:.0f} ms, slowest {times[-1] * 1000:.0f} ms"
    )
    return 1 if failed or slow else 0


if __name__ == "__main__":
    sys.exit(main())
