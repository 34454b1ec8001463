"""The table of `tests.fit.cases`: a line for each row and term, and each source by itself and left out."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fit.case_score import ScoredCase, summary

# What every figure of a line is; none where a source logged no such term.
_FIGURES = "weights % median/90%, pool GiB median/90%, tokens % median, failed and called so/ran and called too large"


def print_report(cases: Sequence[ScoredCase]) -> None:
    for case in cases:
        print(f"{case.id}: skipped, {case.skipped}" if case.skipped else _lines(case))
    print(f"\nBy source: that source alone, and all others without it ({_FIGURES})")
    for source in sorted({case.source for case in cases if not case.skipped}):
        alone = [case for case in cases if case.source == source and not case.skipped]
        left = [case for case in cases if case.source != source]
        print(f"  {len(alone):3d} rows of {source[:64]:64s} {_figures(alone):40s} | {_figures(left)}")


def _lines(case: ScoredCase) -> str:
    terms = [
        (name, *pair) for name in ("weights_gib", "kv_gib", "kv_tokens") if (pair := getattr(case, name)) is not None
    ]
    told = [f"{name} {_amount(predicted)} / {_amount(logged)}" for name, predicted, logged in (*terms, *case.others)]
    outcome = {None: "", True: ", ran out of memory", False: ", ran"}[case.failed]
    verdict = [f"verdict {case.verdict}{outcome}"] if case.verdict else []
    return f"{case.id}: {'; '.join(told + verdict)}"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def _figures(cases: Sequence[ScoredCase]) -> str:
    told = summary(cases)
    parts = [told[name] for name in ("weights_gib", "kv_gib", "kv_tokens", "verdicts")]
    return "  ".join("/".join(_figure(value) for value in part.values()) for part in parts if isinstance(part, dict))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
