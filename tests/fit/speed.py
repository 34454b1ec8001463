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

from backend.hardware.gpu_table import gpu_facts
from backend.planner.model_facts import ModelFacts
from backend.planner.timing.prediction import throughput, token_seconds
from tests.fit.speed_case import SkippedError, SpeedCase, published, read_case
from tests.fit.speed_work import batch_of, work_of

Facts = Callable[[str], ModelFacts | None]


@dataclass(frozen=True, slots=True)
class Scored:
    """Output tokens a second of one row, and how many sequences it was predicted with."""

    case: SpeedCase
    batch: int
    predicted: float
    published: float

    @property
    def error(self) -> float:
        return abs(self.predicted / self.published - 1)


def predict_case(case: SpeedCase, facts: ModelFacts) -> tuple[float, int]:
    """Output tokens a second, and the sequences. Raises SkippedError for what cannot be planned."""
    gpu = gpu_facts(case.gpu)
    if gpu is None:
        raise SkippedError("unknown GPU")
    work = work_of(case, facts, gpu)
    if case.mode == "decode":
        batch = case.batch or 1
        seconds = token_seconds(work, batch, case.prompt + case.answer / 2, case.engine)
        return work.replicas * batch / seconds, batch
    batch = batch_of(case, work, gpu)
    return throughput(work, batch, case.prompt, case.answer, case.engine), batch


def score(rows: Iterable[Mapping[str, Any]], facts_of: Facts) -> tuple[list[Scored], Counter[str]]:
    """Every row that can be scored, and why the others cannot."""
    scored: list[Scored] = []
    skipped: Counter[str] = Counter()
    for row in rows:
        try:
            case = read_case(row)
            facts = facts_of(case.facts)
            if facts is None:
                raise SkippedError("unknown facts")
            predicted, batch = predict_case(case, facts)
            scored.append(Scored(case, batch, predicted, published(row, case)))
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
