"""`python -m tests.fit.speed FILE.jsonl`: published speeds beside predicted ones, and how far apart they are.

Nothing of a row but what was run enters its prediction; the published figure is read after it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import SettingError
from backend.hardware.gpu_names import find_gpu
from backend.hardware.gpu_table import GpuFacts, gpu_facts
from backend.library.model_table import known_from_catalogue
from backend.planner.fit.known_model import KnownModel
from backend.planner.timing.efficiency import Outlook
from backend.planner.timing.forecast import Forecast
from tests.fit.speed_case import SkippedError, SpeedCase, published, read_case
from tests.fit.speed_work import batch_of, work_of

Known = Callable[[str], KnownModel | None]


@dataclass(frozen=True, slots=True)
class Predicted:
    """Output tokens a second, their range, and the sequences at once."""

    likely: float
    low: float
    high: float
    batch: int


@dataclass(frozen=True, slots=True)
class Scored:
    """One row: what was predicted, and what was published."""

    case: SpeedCase
    predicted: Predicted
    published: float

    @property
    def ratio(self) -> float:
        return self.predicted.likely / self.published

    @property
    def covered(self) -> bool:
        """Whether the range holds what was published."""
        return self.predicted.low <= self.published <= self.predicted.high


def predict_case(case: SpeedCase, known: KnownModel) -> Predicted:
    """What the engine is predicted to do. Raises SkippedError for what cannot be planned."""
    gpu = _gpu(case.gpu)
    work = work_of(case, known, gpu)
    batch = (case.batch or 1) if case.mode == "decode" else batch_of(case, work, gpu)

    forecast = Forecast(work, case.engine)

    def rate(outlook: Outlook) -> float:
        if case.mode == "throughput":
            return forecast.throughput(batch, case.prompt, case.answer, outlook)
        return work.replicas * batch / forecast.token(batch, case.prompt + case.answer / 2, outlook)

    return Predicted(rate("likely"), rate("worst"), rate("best"), batch)


def _gpu(name: str) -> GpuFacts:
    """As a driver tells it, else as people call it."""
    try:
        return gpu_facts(name) or find_gpu(name).facts
    except SettingError:
        raise SkippedError("unknown GPU") from None


def score(
    rows: Iterable[Mapping[str, Any]], known_of: Known = known_from_catalogue
) -> tuple[list[Scored], Counter[str]]:
    """Every row that can be scored, and why the others cannot."""
    scored: list[Scored] = []
    skipped: Counter[str] = Counter()
    for row in rows:
        try:
            case = read_case(row)
            known = known_of(case.facts)
            if known is None:
                raise SkippedError("unknown facts")
            scored.append(Scored(case, predict_case(case, known), published(row, case)))
        except SkippedError as reason:
            skipped[str(reason)] += 1
    return scored, skipped


def read_rows(text: str) -> list[Mapping[str, Any]]:
    """The objects of a file of JSON lines; anything else in it is passed over."""
    rows: list[Mapping[str, Any]] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def left_out_errors(scored: Sequence[Scored]) -> dict[str, float]:
    """Each source's median error in percent, where the median of all other sources' ratios corrects predictions.

    A source that constants were bent to would look better than the others correct it.
    """
    errors: dict[str, float] = {}
    for source in sorted({one.case.source for one in scored}):
        others = [one.ratio for one in scored if one.case.source != source] or [1.0]
        correction = statistics.median(others)
        own = [abs(one.ratio / correction - 1) for one in scored if one.case.source == source]
        errors[source] = round(100 * statistics.median(own), 1)
    return errors


def summary(scored: Sequence[Scored], skipped: Counter[str]) -> dict[str, Any]:
    errors = [100 * abs(one.ratio - 1) for one in scored]
    found: dict[str, Any] = {"scored": len(scored)}
    if skipped:
        found["skipped"] = dict(skipped)
    median, most = (statistics.median(errors), max(errors)) if errors else (None, None)
    rounded = {"median_pct": median and round(median, 2), "max_pct": most and round(most, 2)}
    return {**found, "tokens_per_s": rounded}


def lines(scored: Sequence[Scored]) -> list[str]:
    """A table, in text."""
    head = f"{'engine':<13}{'model':<34}{'weights':<8}{'gpu':<26}{'tp x pp':<8}{'tokens':>11} {'at once':>7}"
    rows = [f"{head} {'predicted':>10} {'range':>17} {'published':>10} {'error':>7}"]
    for one in scored:
        case, found = one.case, one.predicted
        gpu = case.gpu.removeprefix("NVIDIA ").removeprefix("GeForce ")
        tokens = f"{case.prompt}/{case.answer}" if case.answer else f"at {case.prompt}"
        what = f"{case.engine[:12]:<13}{case.model.rpartition('/')[2][:33]:<34}{case.weights[:7]:<8}{gpu[:25]:<26}"
        run = f"{case.tp} x {case.pp:<4}{tokens:>11} {found.batch:>7}"
        span = f"{found.low:,.0f} to {found.high:,.0f}"
        rows.append(f"{what}{run} {found.likely:>10,.1f} {span:>17} {one.published:>10,.1f} {one.ratio - 1:>+7.1%}")
    return rows


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tests.fit.speed FILE.jsonl", file=sys.stderr)
        return 2
    try:
        text = Path(arguments[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"{arguments[0]} cannot be read: {error}", file=sys.stderr)
        return 2
    scored, skipped = score(read_rows(text))
    print("\n".join(lines(scored)))
    if scored:
        inside = sum(one.covered for one in scored)
        print(f"\n{inside} of {len(scored)} published speeds lie within the predicted range.")
        print("Each source left out, corrected by the others (median error, %):")
        for source, error in left_out_errors(scored).items():
            print(f"  {error:>6.1f}  {source}")
    print(json.dumps(summary(scored, skipped)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
