"""SpeedCase: what a row of published speeds says was run, whatever its fields' form. Its value is not part of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Positions of a sequence on average, where a row tells neither prompt nor answer: published single streams and batches
# are measured with short ones.
_UNSAID = 512
# More than anybody published: a slip of the pen.
_MOST_GPUS = 1024

Mode = Literal["decode", "throughput"]


class SkippedError(Exception):
    """A row that cannot be scored, and why, in a word or two."""


@dataclass(frozen=True, slots=True)
class SpeedCase:
    """One run.

    Attributes:
        mode: "decode": steps of `batch` sequences; "throughput": a queue of requests that never ends.
        batch: sequences at once; None as many as fit.
        prompt, answer: tokens of a request; where they are unsaid, of which the middle is what decoding sees.
        per: what the published figure has to be multiplied by for output tokens a second.
    """

    source: str
    model: str
    facts: str
    engine: str
    weights: str
    kv: str
    gpu: str
    tp: int
    pp: int
    replicas: int
    mode: Mode
    batch: int | None
    prompt: int
    answer: int
    per: float


def read_case(row: Mapping[str, Any]) -> SpeedCase:
    """Raises SkippedError for rows that say too little, or publish something else."""
    facts = _text(row, "facts")
    if not facts:
        raise SkippedError("no facts")
    gpu = _text(row, "gpu")
    if not gpu:
        raise SkippedError("no GPU")
    tp, pp, replicas = (max(1, int(_number(row.get(name)) or 1)) for name in ("tp", "pp", "dp"))
    if tp * pp * replicas > _MOST_GPUS:
        raise SkippedError("too many GPUs")
    prompt, answer = _number(row.get("input_tokens")), _number(row.get("output_tokens"))
    mode, batch = _mode(row, prompt is not None and answer is not None)
    prompt, answer = (
        (max(0, prompt or 0), max(0, answer or 0)) if prompt is not None or answer is not None else (_UNSAID, 0)
    )
    gpus = tp * pp * replicas
    return SpeedCase(
        source=_text(row, "source") or "?",
        model=_text(row, "model") or facts,
        facts=facts,
        engine=_text(row, "engine") or "vLLM",
        weights=_text(row, "weights").lower(),
        kv=_text(row, "kv").lower(),
        gpu=gpu,
        tp=tp,
        pp=pp,
        replicas=replicas,
        mode=mode,
        batch=batch,
        prompt=int(prompt),
        answer=max(1, int(answer)) if mode == "throughput" else int(answer),
        per=_per(_text(row, "measure").lower(), prompt, answer, gpus),
    )


def published(row: Mapping[str, Any], case: SpeedCase) -> float:
    """Output tokens a second. Raises SkippedError where the row has none."""
    value = _number(row.get("value"))
    if value is None or value <= 0:
        raise SkippedError("no value")
    return value * case.per


def _mode(row: Mapping[str, Any], lengths: bool) -> tuple[Mode, int | None]:
    words = _text(row, "mode").lower()
    said = _number(row.get("batch")) or _number(row.get("concurrency"))
    named = re.search(r"batch\D{0,3}(\d+)", words)
    batch = int(said) if said else int(named.group(1)) if named else None
    if "throughput" in words or "offline" in words:
        if not lengths:
            raise SkippedError("no lengths")
        return "throughput", batch
    if "single" in words:
        return "decode", 1
    if batch is not None:
        return "decode", batch
    if lengths:
        return "throughput", None
    raise SkippedError("no batch and no lengths")


def _per(measure: str, prompt: float, answer: float, gpus: int) -> float:
    """What the figure is in, as a factor."""
    factor = float(gpus) if "gpu" in measure else 1.0
    if "request" in measure:
        return factor * max(1.0, answer)
    if "total" in measure and "output" not in measure and answer:
        return factor * answer / (prompt + answer)
    if measure and not re.search(r"tok\w*\s*(/|per)\s*s", measure):
        raise SkippedError("another measure")
    return factor


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value.strip() if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    """A number, or one written as text; None for everything else, infinities included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value.replace(",", "") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < 1e15 else None
