"""Every fault that concerns engines, ranks, links and peers, made under greedy answers over three hosts, in float32.

python -m tests.faults.run                               each once
python -m tests.faults.run --only "peer dies" --times 20
python -m tests.faults.run --loopback                    plain processes, where network namespaces cannot be made

A row tells how often a fault was made, the median seconds from it to the first token after the pause, requests lost,
answers whose tokens changed, and ok or FAILED. Exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
import traceback
from typing import Any

from backend.kernel_cache import COMPILER, kernel_cache
from backend.library.resolve import pull
from tests.faults.clock import environment
from tests.faults.cluster import FaultCluster
from tests.faults.deaths import DEATHS
from tests.faults.ends import ENDS
from tests.faults.fault import Fault
from tests.faults.links import LINKS
from tests.faults.trial import Load, Outcome, trial, undisturbed
from tests.hosts import hosts_of, why_no_namespaces
from tests.hosts.host import ROOT

FAULTS = (*DEATHS, *LINKS, *ENDS)
SERVE = ("--dtype", "float32", "--kv-pool", "512MiB")


def main() -> int:
    options = _options()
    chosen = [fault for fault in FAULTS if options.only.lower() in fault.name.lower()]
    if not chosen:
        print("No fault has that in its name:\n  " + "\n  ".join(fault.name for fault in FAULTS))
        return 2
    pull("starter", lambda done, total: None)
    # What every start would otherwise wait for, three machines at a time on the same processor.
    subprocess.run(COMPILER, env=os.environ | {"NUMBA_CACHE_DIR": str(kernel_cache())}, cwd=ROOT, check=True)
    loopback = options.loopback or bool(why_no_namespaces())
    if why_no_namespaces() and not options.loopback:
        print(f"plain processes on loopback: {why_no_namespaces()}")
    with hosts_of("alpha", "beta", "gamma", loopback=loopback) as hosts:
        for host in hosts:
            host.give_starter()
            host.extra |= environment(host.folder)
        with hosts.entered("alpha"):
            cluster = FaultCluster(hosts, (*SERVE, "--pp", str(options.pp)))
            failed = asyncio.run(_matrix(cluster, chosen, options, loopback))
    return 1 if failed else 0


async def _matrix(cluster: FaultCluster, chosen: list[Fault], options: Any, loopback: bool) -> int:
    """Runs the rows; how many failed."""
    load = await _baseline(cluster, options)
    print(f"\n{'fault':<32} {'times':>5} {'noticed s':>9} {'recovery s':>10} {'most s':>7} {'lost':>5} {'changed':>7}")
    passed = failed = skipped = 0
    for fault in chosen:
        why = "loopback has no links" if fault.links and loopback else fault.missing()
        if why:
            print(f"{fault.name:<32} skipped: {why}", flush=True)
            skipped += 1
            continue
        outcomes = await _row(cluster, fault, load, options)
        good = all(outcome.ok for outcome in outcomes)
        passed, failed = passed + good, failed + (not good)
        print(_line(fault, outcomes), flush=True)
    left = await asyncio.to_thread(_end, cluster)
    if left:
        print("left behind at the end:", *left, sep="\n  ")
    print(f"\n{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return failed + bool(left)


async def _baseline(cluster: FaultCluster, options: Any) -> Load:
    """What one process answers, and whether stages over machines answer the same with nothing broken."""
    await asyncio.to_thread(cluster.serve_alone)
    expected = await undisturbed(cluster.url, options.answers, options.tokens)
    await asyncio.to_thread(cluster.stop_server)
    began = time.monotonic()
    for host in cluster.peers:
        await asyncio.to_thread(lambda host=host: cluster.join(host, cluster.invite()))
    await asyncio.to_thread(cluster.serve)
    print(f"{len(cluster.peers)} peers joined, the server serves: {time.monotonic() - began:.0f} s")
    for rank in cluster.ranks():
        print(f"  stage {rank['stage']} on {cluster.host_of(rank['peer']).name}")
    given = await undisturbed(cluster.url, options.answers, options.tokens)
    if given != expected:
        raise AssertionError("Without any fault, stages answer otherwise than one process does.")
    return Load(options.answers, options.tokens, expected)


async def _row(cluster: FaultCluster, fault: Fault, load: Load, options: Any) -> list[Outcome]:
    choose, outcomes = random.Random(f"{options.seed} {fault.name}"), list[Outcome]()
    for number in range(options.times):
        try:
            outcome = await trial(cluster, fault, load, choose)
        except Exception as error:  # noqa: BLE001 - a row that cannot be run has failed, and the others go on
            if options.verbose:
                traceback.print_exc()
            outcome = Outcome(problems=[f"{type(error).__name__}: {error}"])
        outcomes.append(outcome)
        for problem in outcome.problems:
            print(f"  {fault.name}, {number + 1}: {problem}", flush=True)
        if options.verbose:
            print(f"  {fault.name}, {number + 1}: {outcome}", flush=True)
    return outcomes


def _line(fault: Fault, outcomes: list[Outcome]) -> str:
    recovered = [outcome.recovery for outcome in outcomes if outcome.recovery is not None]
    noticed = [outcome.noticed for outcome in outcomes if outcome.noticed is not None]
    figures = (
        f"{statistics.median(noticed):.1f}" if noticed else "-",
        f"{statistics.median(recovered):.1f}" if recovered else "-",
        f"{max(recovered):.1f}" if recovered else "-",
        sum(outcome.lost for outcome in outcomes),
        sum(outcome.changed for outcome in outcomes),
        "ok" if all(outcome.ok for outcome in outcomes) else "FAILED",
    )
    first, second, most, lost, changed, verdict = figures
    return f"{fault.name:<32} {len(outcomes):>5} {first:>9} {second:>10} {most:>7} {lost:>5} {changed:>7}  {verdict}"


def _end(cluster: FaultCluster) -> list[str]:
    """Ends all as a user would; what still runs on any host then."""
    cluster.end()
    return [
        f"{host.name}: {' '.join(process.cmdline())[:120]}" for host in cluster.hosts for process in host.ended(20.0)
    ]


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="how often each fault is made")
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--loopback", action="store_true", help="plain processes instead of network namespaces")
    parser.add_argument("--answers", type=int, default=4, help="answers at a time")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each answer")
    parser.add_argument("--pp", default="2", help="stages, as `serve --pp` takes them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="tell of every trial")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
