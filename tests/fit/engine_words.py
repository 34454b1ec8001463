"""EngineWords: which engine and version a case's words mean. Dates stand for the version that was newest then."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from backend.planner.vllm.deployment import NEWEST, Version

EngineKind = Literal["vllm", "sglang", "tensorrt", "llama.cpp", "other"]

# Days on which versions of vLLM came out (its releases on GitHub).
_RELEASES: tuple[tuple[tuple[int, int, int], Version], ...] = (
    ((2023, 6, 20), (0, 1, 0)),
    ((2023, 9, 28), (0, 2, 0)),
    ((2023, 12, 3), (0, 2, 3)),
    ((2024, 1, 4), (0, 2, 7)),
    ((2024, 1, 31), (0, 3, 0)),
    ((2024, 3, 31), (0, 4, 0)),
    ((2024, 6, 11), (0, 5, 0)),
    ((2024, 7, 23), (0, 5, 3)),
    ((2024, 8, 5), (0, 5, 4)),
    ((2024, 9, 5), (0, 6, 0)),
    ((2024, 10, 14), (0, 6, 3)),
    ((2024, 11, 15), (0, 6, 4)),
    ((2024, 12, 17), (0, 6, 5)),
    ((2024, 12, 27), (0, 6, 6)),
    ((2025, 1, 27), (0, 7, 0)),
    ((2025, 2, 6), (0, 7, 2)),
    ((2025, 2, 20), (0, 7, 3)),
    ((2025, 3, 18), (0, 8, 0)),
    ((2025, 4, 28), (0, 8, 5)),
    ((2025, 5, 28), (0, 9, 0)),
    ((2025, 7, 7), (0, 9, 2)),
    ((2025, 7, 24), (0, 10, 0)),
    ((2025, 8, 18), (0, 10, 1)),
    ((2025, 10, 2), (0, 11, 0)),
    ((2025, 12, 3), (0, 12, 0)),
    ((2025, 12, 18), (0, 13, 0)),
    ((2026, 1, 20), (0, 14, 0)),
    ((2026, 1, 29), (0, 15, 0)),
    ((2026, 2, 13), (0, 16, 0)),
    ((2026, 3, 7), (0, 17, 0)),
    ((2026, 3, 20), (0, 18, 0)),
    ((2026, 4, 3), (0, 19, 0)),
    ((2026, 4, 27), (0, 20, 0)),
    ((2026, 5, 20), (0, 21, 0)),
    ((2026, 6, 5), (0, 22, 0)),
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_VERSION = re.compile(r"(?<![\d.:])v?0\.(\d{1,2})(?:\.(\d{1,3}))?")
_DAY = re.compile(r"(20\d\d)-(\d\d)(?:[-/](\d\d))?")
_MONTH = re.compile(rf"\b({'|'.join(_MONTHS)})[a-z]*\.? (20\d\d)", re.IGNORECASE)
_DAY_OF_SOME_YEAR = re.compile(r"(?<![\d-])(\d\d)-(\d\d)(?![\d-])")
# The year of logs that tell only month and day: that in which both engines ran.
_UNTOLD_YEAR = 2025
# The last version that had the first engine's worker, whose file logs name.
_LAST_V0: Version = (0, 8, 5)


@dataclass(frozen=True, slots=True)
class EngineWords:
    """`version` is vLLM's; `v1` is None where the words do not tell which of its two engines ran."""

    kind: EngineKind
    version: Version
    v1: bool | None


def engine_of(text: object) -> EngineWords:
    """Whatever a case calls its engine; words that mean none are "other"."""
    words = str(text or "")
    return EngineWords(_kind(words.lower()), _version(words), _second(words))


def _kind(words: str) -> EngineKind:
    order: tuple[tuple[str, EngineKind], ...] = (
        ("sglang", "sglang"),
        ("tensorrt", "tensorrt"),
        ("trt", "tensorrt"),
        ("llama.cpp", "llama.cpp"),
        ("llamacpp", "llama.cpp"),
        ("ollama", "llama.cpp"),
        ("vllm", "vllm"),
    )
    for word, kind in order:
        if word in words:
            return kind
    return "other"


def _second(words: str) -> bool | None:
    if re.search(r"\bV0\b", words) or re.search(r"(?<!gpu_)\bworker\.py", words):
        return False
    return True if re.search(r"\bV1\b", words) else None


def _version(words: str) -> Version:
    stated = _VERSION.search(words)
    if stated is not None and stated[2]:
        return (0, int(stated[1]), int(stated[2]))
    if stated is not None:
        return _of_series(int(stated[1]), words)
    day = _day(words)
    if day is not None:
        return max((version for date, version in _RELEASES if date <= day), default=_RELEASES[0][1])
    return _LAST_V0 if _second(words) is False else NEWEST


def _of_series(minor: int, words: str) -> Version:
    """Of "0.6.x" the version of the day that the words tell, in the year in which there was one of that series."""
    day = _day(words)
    if day is None:
        return (0, minor, 0)
    for year in (day[0], day[0] - 1, day[0] + 1):
        newest = max((version for date, version in _RELEASES if date <= (year, *day[1:])), default=())
        if newest[:2] == (0, minor):
            return newest
    return (0, minor, 0)


def _day(words: str) -> tuple[int, int, int] | None:
    full = _DAY.search(words)
    if full is not None:
        return int(full[1]), int(full[2]), int(full[3] or 28)
    month = _MONTH.search(words)
    if month is not None:
        return int(month[2]), _MONTHS.index(month[1][:3].lower()) + 1, 28
    partly = _DAY_OF_SOME_YEAR.search(words)
    return (_UNTOLD_YEAR, int(partly[1]), int(partly[2])) if partly is not None else None
