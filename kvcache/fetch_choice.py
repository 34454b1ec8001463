"""Whether a hit on lower tiers is worth its copy, as a pure function over measured rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes to fetch, and the measured bytes per second of their tier; 0 where nothing has been measured."""

    bytes: int
    rate: float


def worth_fetching(tokens: int, copies: Iterable[Copy], compute_rate: float) -> bool:
    """Whether copying takes less time than computing these prompt tokens again.

    compute_rate: prompt tokens per second, 0 where not known. What is not known counts as favourable: a fetch is tried,
    and measured.
    """
    if compute_rate <= 0:
        return True
    seconds = sum(copy.bytes / copy.rate for copy in copies if copy.rate > 0)
    return seconds < tokens / compute_rate
