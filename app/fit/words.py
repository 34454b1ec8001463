"""Amounts and verdicts of a FitReport in the words that every face says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from app.text_safety import clean
from backend.planner.fit.report import Bound, FitPlan, Interval, Verdict, VerdictKind

VERDICTS: Mapping[VerdictKind, str] = MappingProxyType(
    {
        "roomy": "fits with margin",
        "fits": "fits",
        "fragile": "boots, but fragile",
        "too large": "does not fit",
    }
)
BOUNDS: Mapping[Bound, str] = MappingProxyType(
    {
        "memory": "a step waits for memory",
        "compute": "a step waits for arithmetic",
        "link": "a step waits for the links between GPUs",
        "launch": "a step waits for kernels to be launched",
    }
)
# What has to be done before stages can be on several machines.
JOINING = "`shardwise peers invite` on the first machine prints a line, which the others join with"
# In the order in which a start takes them.
_TERMS = ("weights", "kv", "activations", "graphs", "communication", "context", "libraries", "streaming")
_SHORT: Mapping[str, str] = MappingProxyType(
    {"activations": "activ.", "communication": "comm.", "streaming": "stream.", "libraries": "libs"}
)
_GIB = 1 << 30


def verdict_words(verdict: Verdict) -> str:
    """The kind, and the sentence that says why."""
    sentence = clean(verdict.sentence)
    return f"{VERDICTS[verdict.kind]}. {sentence[:1].upper()}{sentence[1:]}"


def term_names(found: Iterable[str]) -> list[str]:
    """Names of memory terms, each once, in the order in which tables have them."""
    names = set(found)
    return [name for name in _TERMS if name in names] + sorted(names - set(_TERMS))


def term_title(name: str) -> str:
    """A term's name at the head of a column."""
    return _SHORT.get(name, name)


def gib(count: int) -> str:
    """Bytes as GiB, such as "32.9" or "0.51"; what is not 0 never reads as 0."""
    amount = count / _GIB
    return "0" if count == 0 else f"{amount:.1f}" if abs(amount) >= 10 else f"{amount:.2f}"


def seconds(amount: float) -> str:
    """A time in the unit that people expect, such as "850 ms" or "12.3 s"."""
    if amount >= 99.95:
        return f"{amount:,.0f} s"
    if amount >= 0.9995:
        return f"{amount:.1f} s"
    milliseconds = amount * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 9.95 else f"{milliseconds:.1f} ms"


def seconds_between(interval: Interval) -> str:
    """The likely time and its range: "21 ms (18 ms to 26 ms)"."""
    return f"{seconds(interval.likely)} ({seconds(interval.low)} to {seconds(interval.high)})"


def rate(amount: float) -> str:
    """Tokens a second; below ten with a decimal."""
    return f"{amount:,.0f}" if amount >= 9.95 else f"{amount:.1f}"


def dollars(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 999.5 else f"{amount:.2f}"


def layout(plan: FitPlan) -> str:
    """Tensor x stages x replicas, "e" where experts are whole: "8x2x1", "8ex1x1"; "cpu" for one processor."""
    if plan.devices[0].gpu is None:
        return "cpu" if plan.stages * plan.replicas == 1 else f"cpux{plan.stages}x{plan.replicas}"
    return f"{plan.tensor}{'e' if plan.experts == 'expert' else ''}x{plan.stages}x{plan.replicas}"


def layout_in_words(plan: FitPlan) -> str:
    """As people say it: "tensor 4, 2 stages, 2 replicas, weights int8, kv model"."""
    parts = [
        "processor" if plan.devices[0].gpu is None else f"tensor {plan.tensor}",
        f"{plan.stages} stages" if plan.stages > 1 else "",
        f"{plan.replicas} replicas" if plan.replicas > 1 else "",
        "whole experts" if plan.experts == "expert" else "",
        f"weights {plan.weights}, kv {plan.kv_format}",
        f"{plan.hosted} layers in host memory" if plan.hosted else "",
    ]
    return ", ".join(part for part in parts if part)


def over_machines(plan: FitPlan) -> bool:
    """Whether one copy of the model is on several machines."""
    return plan.replicas == 1 and len({device.machine for device in plan.devices}) > 1


def formats(plan: FitPlan) -> str:
    """Weights/kv: "nf4/fp8"; of keys and values in the model's own format nothing is said: "nf4".

    "nf4+host" has layers in host memory.
    """
    weights = f"{plan.weights}+host" if plan.hosted else plan.weights
    return weights if plan.kv_format == "model" else f"{weights}/{plan.kv_format}"


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 user", "16 users"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
