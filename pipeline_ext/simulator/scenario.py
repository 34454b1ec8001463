"""Scenario: all that a seed decides before anything runs: machines, the plan, requests and faults. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from backend.request import Request, Sampling
from pipeline_ext.simulator.toy_stage import POISON, VOCABULARY

FaultKind = Literal["kill", "power", "freeze", "slow", "partition", "part", "cut", "leave", "refuse", "suspend"]
_KINDS: tuple[FaultKind, ...] = (
    "kill", "kill", "power", "freeze", "freeze", "slow", "partition", "part", "cut", "cut", "leave", "leave", "refuse",
    "suspend",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens `at` so many seconds after the first start, for `seconds` where it is undone again.

    `target` chooses among what is there then.
    """

    at: float
    kind: FaultKind
    target: int
    seconds: float


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A machine: layers that it has room for, and seconds to it. `later` it joins only then."""

    name: str
    capacity: int
    latency: float
    later: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One seed's world. `stages` are (machine, layers), in order; `ranks` each has."""

    seed: int
    windows: tuple[int | None, ...]
    hosts: tuple[HostPlan, ...]
    stages: tuple[tuple[str, int], ...]
    ranks: int
    host_pages: int
    page_tokens: int
    spare_pages: int
    step_tokens: int
    requests: tuple[tuple[float, Request], ...]
    cancels: tuple[tuple[float, str], ...]
    faults: tuple[Fault, ...]

    @property
    def layers(self) -> int:
        return len(self.windows)


def make_scenario(seed: int) -> Scenario:
    """The same for the same seed, on every machine."""
    chance = Random(seed)
    layers = chance.randint(2, 5)
    stages = min(layers, chance.choice((2, 3, 3, 4)))
    cuts = sorted(chance.sample(range(1, layers), stages - 1))
    sizes = [stop - start for start, stop in zip([0, *cuts], [*cuts, layers], strict=True)]
    # Nothing to spare, and sooner or later somebody stays away.
    bare = chance.random() < 0.1
    hosts = [HostPlan("", 0 if bare else chance.choice((0, 0, sizes[0], layers)), 0.0)]
    home: list[str] = []
    for number, size in enumerate(sizes):
        if number == 0 and hosts[0].capacity >= size and chance.random() < 0.6:
            home.append("")
            continue
        name = f"p{number}"
        hosts.append(
            HostPlan(
                name, size + (0 if bare else chance.choice((0, 0, 1, layers))), chance.choice((0.0002, 0.001, 0.01))
            )
        )
        home.append(name)
    for spare in range(0 if bare else chance.choice((0, 1, 1, 2))):
        later = chance.choice((0.0, 0.0, 3.0, 15.0))
        hosts.append(HostPlan(f"s{spare}", chance.randint(1, layers), chance.choice((0.0002, 0.01)), later))
    requests = tuple(_request(chance, number) for number in range(chance.randint(1, 4)))
    cancels = tuple((at + 0.3, request.id) for at, request in requests if chance.random() < 0.08)
    faults = [one for _ in range(chance.choice((0, 1, 1, 2))) for one in _faults(chance)]
    if bare:
        faults.append(Fault(chance.uniform(0.0, 2.0), "power", 3 * chance.randrange(300), 0.0))
    return Scenario(
        seed=seed,
        windows=tuple(chance.choice((None, None, 6)) for _ in range(layers)),
        hosts=tuple(hosts),
        stages=tuple(zip(home, sizes, strict=True)),
        ranks=chance.choice((1, 1, 1, 1, 2)),
        host_pages=chance.choice((0, 0, 8)),
        page_tokens=chance.choice((1, 2, 4)),
        spare_pages=chance.randint(0, 12),
        step_tokens=chance.choice((4, 8, 16)),
        requests=requests,
        cancels=cancels,
        faults=tuple(sorted(faults, key=lambda one: one.at)),
    )


def _request(chance: Random, number: int) -> tuple[float, Request]:
    prompt = [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 10))]
    if chance.random() < 0.3:
        prompt = [(place * 7) % VOCABULARY for place in range(len(prompt))]
    if chance.random() < 0.04:
        prompt[chance.randrange(len(prompt))] = POISON
    at = chance.choice((0.0, 0.0, 0.05, 0.3, 0.8, 6.0))
    sampling = Sampling(max_tokens=chance.randint(1, 18))
    return at, Request(id=f"r{number}", prompt=tuple(prompt), sampling=sampling)


def _faults(chance: Random) -> list[Fault]:
    """What goes wrong at about one time: trouble seldom comes alone."""
    at = chance.choice((chance.uniform(0.0, 0.4), chance.uniform(0.0, 1.2), chance.uniform(0.0, 10.0)))
    if chance.random() < 0.5:
        return [_fault(chance, at, _KINDS) for _ in range(chance.choice((1, 1, 2)))]
    # Somebody is late, so that what he has to say comes when others have gone on without him.
    late = _fault(chance, at, ("slow", "slow", "freeze", "part"))
    return [late, _fault(chance, at + chance.uniform(0.0, 0.6), ("kill", "cut", "cut", "power"))]


def _fault(chance: Random, at: float, kinds: tuple[FaultKind, ...]) -> Fault:
    seconds = chance.choice((0.2, 1.0, 2.0, 2.5, 4.0, 7.0, 12.0))
    return Fault(at + chance.uniform(0.0, 0.05), chance.choice(kinds), chance.randrange(1000), seconds)
