"""FitReport: the answer, as plain data that `--json` prints, tables and the wizard show. Making it is `fit`'s."""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

from backend.planner.fit.ask import FitAsk
from backend.planner.plan import MemoryTerm

# From best to worst.
VerdictKind = Literal["roomy", "fits", "fragile", "too large"]
KINDS: tuple[VerdictKind, ...] = get_args(VerdictKind)
Bound = Literal["memory", "compute", "link", "launch"]


class Interval(Struct, frozen=True):
    """A prediction with the range that measured efficiencies leave open: low <= likely <= high."""

    low: float
    likely: float
    high: float


class GpuUse(Struct, frozen=True):
    """One device's memory under a plan, in bytes. The terms' sum is what the plan takes of it.

    Attributes:
        machine, gpu: which, by position; `gpu` is None for a processor.
        name: as people call it.
        stage, rank: the part of the plan that lies there.
        total, usable: all of it, and what the engine may take.
        terms: those that are not 0. Of shardwise: weights, kv, activations, libraries (the CUDA context included),
            communication, streaming, states; of vLLM: weights, kv, activations, graphs, communication, context.
        unused: what is left of `usable`; below 0 where it is short.
    """

    machine: int
    gpu: int | None
    name: str
    stage: int
    rank: int
    total: int
    usable: int
    terms: tuple[MemoryTerm, ...]
    unused: int


class Speed(Struct, frozen=True):
    """What the plan is predicted to do.

    Attributes:
        first_token: seconds until the first token of a typical request, with nobody else waiting.
        token: seconds from token to token with as many users as were asked for (or as fit, if fewer).
        alone: seconds from token to token of a single user.
        throughput: output tokens a second over all replicas, with as many sequences as fit.
        sequences: how many that was, over all replicas.
        communication: bytes that each rank sends for one token of an answer.
        bound: what a decode step with the asked users waits for.
    """

    first_token: Interval
    token: Interval
    alone: Interval
    throughput: Interval
    sequences: int
    communication: int
    bound: Bound


class Cost(Struct, frozen=True):
    """Dollars for a million output tokens at that throughput.

    Attributes:
        price: dollars for one GPU and hour; `source` and `dated` say whose and of when ("" where nobody says).
    """

    per_million: Interval
    price: float
    source: str
    dated: str


class Verdict(Struct, frozen=True):
    """Whether it fits.

    Attributes:
        kind: "roomy" (with margin), "fits", "fragile" (it would start, and fail or crawl under load), "too large".
        term: the term that decides ("weights", "kv", ...); empty where it is roomy.
        needed, available: that term's bytes on the device that is short, or has least left.
        sentence: for people.
    """

    kind: VerdictKind
    term: str
    needed: int
    available: int
    sentence: str

    @property
    def fits(self) -> bool:
        """Whether what was asked fits, and not only starts."""
        return self.kind in ("roomy", "fits")


class FitPlan(Struct, frozen=True, kw_only=True):
    """One way to serve the model on this hardware.

    Attributes:
        replicas, stages, tensor, experts: how the model is multiplied, cut and divided.
        weights, kv_format: formats.
        hosted: layers whose weights lie in host memory.
        devices: each device's memory, of all replicas.
        kv_tokens: positions that all pools hold together.
        largest_context: of one sequence, and solved, not searched for by trial; 0 where none fits.
        concurrency: sequences of the asked context that fit at once, over all replicas.
        speed, cost: None where it does not fit at all, or nothing is known to predict from.
        runnable: whether this version of the engine can run it here; `blocked` says why not.
        options: what `shardwise serve MODEL` takes to run it; vLLM's for `vllm serve`.
        reasons: sentences for people.
    """

    replicas: int
    stages: int
    tensor: int
    experts: Literal["tensor", "expert"]
    weights: str
    kv_format: str
    hosted: int
    devices: tuple[GpuUse, ...]
    kv_tokens: int
    largest_context: int
    concurrency: int
    verdict: Verdict
    speed: Speed | None
    cost: Cost | None
    runnable: bool
    blocked: str
    options: tuple[str, ...]
    reasons: tuple[str, ...]


class WayOut(Struct, frozen=True):
    """Something to change where nothing fits, or where a plan is fragile, cheapest first.

    Attributes:
        what: the change, as a sentence ("Store the weights as int8").
        option: the option or hardware that makes it ("--weights int8"); empty where no option does.
        gives: what it leads to ("a context of 8,192 for 4 users").
    """

    what: str
    option: str
    gives: str


class FitReport(Struct, frozen=True, kw_only=True):
    """All plans, best first by the goal: those that fit before those that do not, runnable ones before others alike.

    Attributes:
        model, source: its name, and where its facts come from.
        hardware: in words.
        ask: as it was resolved (context, version).
        plans: at least one.
        best: position of the best plan that fits; None where none does.
        serve: position of the plan that `shardwise serve` would take on the first machine by itself, wherever that is;
            None where it would refuse, and where formats were asked for that it does not take by itself.
        ways_out: three at most, where that plan, or what comes nearest to one in the model's own formats, does not fit
            or is fragile; the best plan may be one of them.
        notes: sentences about the whole (facts that are estimates, GPUs that were left out).
    """

    model: str
    source: str
    hardware: str
    ask: FitAsk
    plans: tuple[FitPlan, ...]
    best: int | None
    serve: int | None
    ways_out: tuple[WayOut, ...]
    notes: tuple[str, ...]
