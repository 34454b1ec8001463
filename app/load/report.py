"""A load's results as a table for people; JSON is the results themselves."""

from __future__ import annotations

from collections.abc import Sequence

from app.load.figures import Figures, Range, over_runs
from app.load.run import Runs

_COLUMNS = (
    ("output_per_second", "output tok/s"),
    ("ttft_p50", "TTFT p50 ms"),
    ("ttft_p99", "TTFT p99 ms"),
    ("itl_p50", "ITL p50 ms"),
    ("itl_p99", "ITL p99 ms"),
    ("tpot_p50", "TPOT p50 ms"),
)


def table(results: Runs) -> str:
    """One row a workload: the median over its runs, with lowest and highest where there are several."""
    rows = [("workload", *(title for _, title in _COLUMNS), "cached", "failed")]
    for name, runs in results.items():
        ranges = over_runs(runs)
        rows.append((name, *(_cell(ranges.get(key)) for key, _ in _COLUMNS), _cached(runs), _failed(runs)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]) for row in rows
    ]
    return "\n".join([*lines, *_notes(results)])


def _cell(found: Range | None) -> str:
    if found is None:
        return "-"
    if found.low == found.high:
        return _number(found.median)
    return f"{_number(found.median)} ({_number(found.low)}-{_number(found.high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _cached(runs: Sequence[Figures]) -> str:
    cached = [run.cached_tokens for run in runs if run.cached_tokens is not None]
    return str(max(cached)) if cached else "-"


def _failed(runs: Sequence[Figures]) -> str:
    return str(sum(run.failed for run in runs))


def _notes(results: Runs) -> list[str]:
    notes: list[str] = []
    for name, runs in results.items():
        wrong = sum(run.wrong_length for run in runs)
        if wrong:
            notes.append(f"{name}: {wrong} answers were not of the length asked for")
        notes += [f"{name}: {error}" for error in sorted({error for run in runs for error in run.errors})]
    return notes
