"""FitReports by hand: plans that fit, are fragile and do not fit, without a planner."""

from __future__ import annotations

from typing import Any

from backend.planner.fit.ask import FitAsk
from backend.planner.fit.report import Cost, FitPlan, FitReport, GpuUse, Interval, Speed, Verdict, WayOut
from backend.planner.plan import MemoryTerm

GIB = 1 << 30
H100 = "NVIDIA H100 80GB HBM3"


def about(likely: float) -> Interval:
    return Interval(low=likely * 0.8, likely=likely, high=likely * 1.25)


def use(gpu: int | None, terms: dict[str, float], *, machine: int = 0, stage: int = 0, unused: float = 4.0) -> GpuUse:
    """A device of 79 GiB of which 75 may be used; terms in GiB."""
    return GpuUse(
        machine=machine,
        gpu=gpu,
        name=H100 if gpu is not None else "processor",
        stage=stage,
        rank=gpu or 0,
        total=79 * GIB,
        usable=75 * GIB,
        terms=tuple(MemoryTerm(name, int(amount * GIB)) for name, amount in terms.items()),
        unused=int(unused * GIB),
    )


def plan(**changes: Any) -> FitPlan:
    """A plan over two GPUs that fits with margin."""
    terms = {"weights": 32.9, "kv": 34.1, "activations": 1.25, "graphs": 0.5, "communication": 0.3, "context": 0.5}
    fields: dict[str, Any] = {
        "replicas": 1,
        "stages": 1,
        "tensor": 2,
        "experts": "tensor",
        "weights": "model",
        "kv_format": "model",
        "hosted": 0,
        "devices": (use(0, terms), use(1, terms)),
        "kv_tokens": 449_000,
        "largest_context": 131_072,
        "concurrency": 54,
        "verdict": Verdict("roomy", "", 0, 0, "34.1 GiB are left for keys and values."),
        "speed": speed(),
        "cost": Cost(about(2.31), 2.29, "Verda", "2026"),
        "runnable": True,
        "blocked": "",
        "options": ("--tp", "2"),
        "reasons": ("Two GPUs hold the weights; one does not.",),
    }
    return FitPlan(**{**fields, **changes})


def speed(**changes: Any) -> Speed:
    fields: dict[str, Any] = {
        "first_token": about(0.092),
        "token": about(0.0213),
        "alone": about(0.0201),
        "throughput": about(1234.0),
        "sequences": 54,
        "communication": 2_621_440,
        "bound": "memory",
    }
    return Speed(**{**fields, **changes})


def too_large(**changes: Any) -> FitPlan:
    """A plan whose weights alone exceed the GPU."""
    verdict = Verdict("too large", "weights", 131 * GIB, 75 * GIB, "The weights take 131 GiB of the 75 GiB usable.")
    fields: dict[str, Any] = {
        "tensor": 1,
        "devices": (use(0, {"weights": 131.0, "context": 0.5}, unused=-57.0),),
        "kv_tokens": 0,
        "largest_context": 0,
        "concurrency": 0,
        "verdict": verdict,
        "speed": None,
        "cost": None,
        "runnable": False,
        "blocked": "it does not fit",
        "options": (),
    }
    return plan(**{**fields, **changes})


def report(*plans: FitPlan, **changes: Any) -> FitReport:
    """Of the plans given, or of one that fits."""
    chosen = plans or (plan(),)
    best = next((number for number, one in enumerate(chosen) if one.verdict.kind != "too large"), None)
    fields: dict[str, Any] = {
        "model": "maker/large-70B",
        "source": "the catalogue (dimensions from the maker's config)",
        "hardware": "2x H100 80GB, NVLink 4",
        "ask": FitAsk(context=8192, users=4),
        "plans": chosen,
        "best": best,
        "serve": None,
        "ways_out": (),
        "notes": ("Weights are estimated from dimensions.",),
    }
    return FitReport(**{**fields, **changes})


WAYS = (
    WayOut("Store the weights as int8", "--weights int8", "a context of 8,192 for 4 users"),
    WayOut("Add a GPU", "2x H100-80GB", "a context of 131,072 for 3 users"),
)
