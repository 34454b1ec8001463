"""The table of `tests.fit.cases`: a line for each row and term, and what is left when one source is left out."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fit.case_score import ScoredCase, summary


def print_report(cases: Sequence[ScoredCase]) -> None:
    for case in cases:
        print(f"{case.id}: skipped, {case.skipped}" if case.skipped else _lines(case))
    print("\nWithout one source: weights median/p90 %, pool median/p90 GiB, tokens median %, verdicts")
    for source in sorted({case.source for case in cases}):
        left = [case for case in cases if case.source != source]
        print(f"  {len(cases) - len(left):3d} rows of {source[:70]:70s} {_figures(left)}")


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
    return "  ".join("/".join(str(value) for value in part.values()) for part in parts if isinstance(part, dict))
