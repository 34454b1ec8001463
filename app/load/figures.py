"""Figures of a load, as the field defines them, from its answers. Pure.

ttft: from just before sending to the first chunk with text. itl: gaps between chunks with text, over all
requests. tpot: (last - first chunk with text) / (output tokens - 1), one a request. Output tokens a second:
of all complete answers, over the wall time of the whole load.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

from app.load.server import Answer


class Spread(Struct, frozen=True):
    """Percentiles of a measure, in milliseconds."""

    p50: float
    p99: float


class Figures(Struct, frozen=True, kw_only=True):
    """One run of one workload; None where no answer gave the measure."""

    answered: int
    failed: int
    wrong_length: int
    wall_seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    output_per_second: float
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    errors: tuple[str, ...] = ()


class Range(Struct, frozen=True):
    """A measure over runs."""

    median: float
    low: float
    high: float


# What a table and a comparison show, and where it stands in Figures.
MEASURES = ("output_per_second", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99", "tpot_p50")


def figures(answers: Sequence[Answer], output_tokens: int, wall: float) -> Figures:
    complete = [answer for answer in answers if not answer.error]
    tokens = sum(answer.output_tokens for answer in complete)
    cached = [answer.cached_tokens for answer in complete if answer.cached_tokens is not None]
    return Figures(
        answered=len(complete),
        failed=len(answers) - len(complete),
        wrong_length=sum(answer.output_tokens != output_tokens for answer in complete),
        wall_seconds=wall,
        prompt_tokens=sum(answer.prompt_tokens for answer in complete),
        output_tokens=tokens,
        cached_tokens=sum(cached) if cached else None,
        output_per_second=tokens / wall if wall else 0.0,
        ttft=spread(answer.first for answer in complete if answer.first is not None),
        itl=spread(gap for answer in complete for gap in answer.gaps),
        tpot=spread(
            (answer.last - answer.first) / (answer.output_tokens - 1)
            for answer in complete
            if answer.first is not None and answer.last is not None and answer.output_tokens > 1
        ),
        errors=tuple(sorted({answer.error for answer in answers if answer.error})),
    )


def spread(seconds: Iterable[float]) -> Spread | None:
    ordered = sorted(seconds)
    return Spread(percentile(ordered, 50) * 1e3, percentile(ordered, 99) * 1e3) if ordered else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The `share`th percentile of sorted values, interpolated linearly."""
    place = (len(ordered) - 1) * share / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def measure(run: Figures, name: str) -> float | None:
    """One of MEASURES of one run."""
    if name == "output_per_second":
        return run.output_per_second
    field, _, point = name.rpartition("_")
    found: Spread | None = getattr(run, field)
    return None if found is None else float(getattr(found, point))


def over_runs(runs: Sequence[Figures]) -> dict[str, Range]:
    """Median, lowest and highest of each measure that some run has."""
    ranges: dict[str, Range] = {}
    for name in MEASURES:
        values = [value for run in runs if (value := measure(run, name)) is not None]
        if values:
            ranges[name] = Range(statistics.median(values), min(values), max(values))
    return ranges
