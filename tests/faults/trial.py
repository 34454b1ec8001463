"""Trial: one fault made once under running answers, and what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from tests.faults.cache_state import conserved
from tests.faults.cluster import FaultCluster
from tests.faults.fault import Fault, Scene
from tests.faults.greedy import Answers, begin, client_at
from tests.faults.watch import Watch
from tests.hosts import Host

SETTLE_SECONDS = 15.0


@dataclass(frozen=True)
class Load:
    """What runs while a fault is made: so many answers of so many tokens, and what they are without it."""

    answers: int
    tokens: int
    expected: dict[str, str]


@dataclass
class Outcome:
    """What came of one trial.

    `noticed` is how long `/health` took to say that something is wrong, `recovery` how long until the first token after
    the pause, both in seconds from the fault on; None where nothing had to be noticed, or to recover.
    """

    recovery: float | None = None
    noticed: float | None = None
    lost: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.changed or self.problems)


async def trial(cluster: FaultCluster, fault: Fault, load: Load, choose: random.Random) -> Outcome:
    """One fault; the cluster is whole when it begins and when it ends, or the outcome says that it is not."""
    await asyncio.to_thread(cluster.repair)
    scene = Scene(cluster, choose)
    await asyncio.to_thread(fault.prepare, scene)
    before = await asyncio.to_thread(cluster.workers)
    async with client_at(cluster.url) as client, Watch(cluster.url) as watch:
        answers, all_of_them = begin(client, load.answers, load.tokens)
        # Late enough to be within the answers, early enough to be well before their end.
        await answers.tokens(choose.randrange(load.answers, load.answers * load.tokens // 3))
        struck = time.monotonic()
        await asyncio.to_thread(fault.strike, scene)
        await all_of_them
    outcome = _judged(fault, answers, load, struck, watch)
    await asyncio.to_thread(fault.after, scene)
    if not fault.ends_server:
        outcome.problems += await asyncio.to_thread(_afterwards, cluster, fault, before)
    await asyncio.to_thread(cluster.repair)
    left = await asyncio.to_thread(cluster.orphans, before)
    outcome.problems += [*scene.problems, *(f"process {pid} of a lost stage still runs" for pid in left)]
    return outcome


def _judged(fault: Fault, answers: Answers, load: Load, struck: float, watch: Watch) -> Outcome:
    outcome = Outcome(answers.recovery(struck) if fault.loses else None, watch.first_trouble(struck))
    outcome.changed = answers.changed(load.expected)
    # A server that was told twice to end does not finish its answers: each has one typed end all the same.
    outcome.lost = 0 if fault.ends_server else len(answers.failures)
    if outcome.lost:
        outcome.problems.append(answers.failures[0])
    if not any(moment > struck for moment in answers.times) and not fault.ends_server:
        outcome.problems.append("no token came after the fault")
    if fault.loses and outcome.noticed is None:
        outcome.problems.append("/health said all the time that all is well")
    return outcome


def _afterwards(cluster: FaultCluster, fault: Fault, before: dict[int, Host]) -> list[str]:
    """What must hold when the answers have ended, the fault still there or not."""
    problems = list[str]()
    until = time.monotonic() + SETTLE_SECONDS
    while (now := cluster.cache())["pages_used"] and time.monotonic() < until:
        time.sleep(0.1)
    if not conserved(now) or now["pages_used"]:
        problems.append(f"pages do not add up: {now}")
    if not fault.loses and set(cluster.workers()) != set(before):
        problems.append("a stage was replaced although nothing was lost")
    return problems


async def undisturbed(url: str, answers: int, tokens: int) -> dict[str, str]:
    """The answers without any fault. Raises AssertionError where one is lost."""
    async with client_at(url) as client:
        given, all_of_them = begin(client, answers, tokens)
        await all_of_them
    if given.failures:
        raise AssertionError(f"An answer was lost without any fault: {given.failures[0]}")
    return given.texts
