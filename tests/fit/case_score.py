"""ScoredCase: predicted beside logged for one row, and what all rows come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from backend.errors import ShardwiseError
from tests.fit.case_prediction import CasePrediction, predict
from tests.fit.case_row import CaseRow, number, read_row

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ScoredCase:
    """Pairs are (predicted, logged); None where one of both is not there.

    `kv_gib` is of vLLM's rows alone. `verdict` is what was predicted, `failed` whether the run did for want of memory.
    `skipped` says why nothing was scored.
    """

    id: str
    source: str
    weights_gib: Pair | None = None
    kv_gib: Pair | None = None
    kv_tokens: Pair | None = None
    others: tuple[tuple[str, float, float], ...] = ()
    verdict: str | None = None
    failed: bool | None = None
    sentence: str = ""
    skipped: str = ""


def score(row: Mapping[str, Any]) -> ScoredCase:
    """Predicts a row from what is not `observed`, and then looks at that."""
    observed = row.get("observed")
    observed = observed if isinstance(observed, dict) else {}
    case = read_row({name: value for name, value in row.items() if name != "observed"})
    try:
        predicted = predict(case)
    except ShardwiseError as error:
        return ScoredCase(case.id, case.source, skipped=f"refused: {error}")
    except (ArithmeticError, LookupError, ValueError, TypeError) as error:
        return ScoredCase(case.id, case.source, skipped=f"not understood: {type(error).__name__}")
    return _compare(case, predicted, observed)


def _compare(case: CaseRow, predicted: CasePrediction, observed: Mapping[str, Any]) -> ScoredCase:
    if predicted.skipped:
        return ScoredCase(case.id, case.source, skipped=predicted.skipped)
    failed = observed.get("oom")
    failed = failed if isinstance(failed, bool) and predicted.verdict is not None else None
    vllm = case.engine.kind == "vllm"
    scored = ScoredCase(
        id=case.id,
        source=case.source,
        weights_gib=_pair(predicted.weights_gib, observed.get("weights_gib_per_gpu")),
        kv_gib=_pair(predicted.kv_gib if vllm else None, observed.get("kv_cache_gib_per_gpu")),
        kv_tokens=_pair(predicted.kv_tokens, observed.get("kv_tokens")),
        others=_others(predicted, observed, vllm),
        verdict=predicted.verdict,
        failed=failed,
        sentence=predicted.sentence,
    )
    if scored.weights_gib or scored.kv_gib or scored.kv_tokens or scored.others or failed is not None:
        return scored
    return ScoredCase(case.id, case.source, skipped=_why(case, observed))


def _why(case: CaseRow, observed: Mapping[str, Any]) -> str:
    terms = ("weights_gib_per_gpu", "kv_cache_gib_per_gpu", "kv_tokens", "oom")
    if all(observed.get(term) is None for term in terms):
        return "none of the terms was logged"
    return "GPU memory not known" if case.gpu.memory_gib is None else "not enough is stated"


def _pair(predicted: float | None, logged: object) -> Pair | None:
    told = number(logged)
    return (predicted, told) if predicted is not None and told is not None else None


def _others(predicted: CasePrediction, observed: Mapping[str, Any], vllm: bool) -> tuple[tuple[str, float, float], ...]:
    """Terms that are printed, and not part of the targets."""
    logged = {
        "act": number(observed.get("activation_peak_gib")),
        "non_torch": number(observed.get("non_torch_forward_gib")),
        "graphs": number(observed.get("cuda_graph_gib")),
        "model_gib": number(observed.get("model_size_gib")),
        "kv_buffers_gib": _sum_mib(observed.get("kv_buffers_mib")),
        "kv_gib": None if vllm else number(observed.get("kv_cache_gib_per_gpu")),
    }
    told = dict(predicted.terms)
    for name in ("model_gib", "kv_buffers_gib", "kv_gib"):
        value = getattr(predicted, name)
        if value is not None:
            told[name] = value
    return tuple((name, told[name], value) for name, value in logged.items() if value is not None and name in told)


def _sum_mib(buffers: object) -> float | None:
    sizes = [number(size) for size in buffers.values()] if isinstance(buffers, dict) else []
    return sum(size for size in sizes if size is not None) / 1024 if sizes else None


def summary(cases: Sequence[ScoredCase]) -> dict[str, object]:
    """The command's last line. Shares of verdicts are of runs that failed, and of runs that ran."""
    weights, tokens = (sorted(relative(cases, term)) for term in ("weights_gib", "kv_tokens"))
    pools = sorted(absolute(cases, "kv_gib"))
    failed = [case.verdict in ("too large", "fragile") for case in cases if case.failed is True]
    ran = [case.verdict == "too large" for case in cases if case.failed is False]
    return {
        "scored": sum(not case.skipped for case in cases),
        "skipped": dict(Counter(case.skipped for case in cases if case.skipped)),
        "weights_gib": {"median_pct": _middle(weights), "p90_pct": _ninety(weights)},
        "kv_gib": {"median": _middle(pools), "p90": _ninety(pools)},
        "kv_tokens": {"median_pct": _middle(tokens)},
        "verdicts": {"oom_called": _part(failed), "ran_called_oom": _part(ran)},
    }


def relative(cases: Iterable[ScoredCase], term: str) -> list[float]:
    """Errors of a term in percent of what was logged."""
    pairs = [getattr(case, term) for case in cases if getattr(case, term)]
    return [abs(told - logged) / abs(logged) * 100 for told, logged in pairs if logged]


def absolute(cases: Iterable[ScoredCase], term: str) -> list[float]:
    return [abs(pair[0] - pair[1]) for case in cases if (pair := getattr(case, term))]


def _middle(errors: Sequence[float]) -> float | None:
    return round(median(errors), 3) if errors else None


def _ninety(errors: Sequence[float]) -> float | None:
    """The error that 90% of rows keep within."""
    return round(errors[max(0, -(-len(errors) * 9 // 10) - 1)], 3) if errors else None


def _part(called: Sequence[bool]) -> float | None:
    return round(sum(called) / len(called), 3) if called else None
