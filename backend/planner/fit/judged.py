"""Judged: a candidate with its verdict and times: what ranking and ways out look at. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.fit.candidate import Candidate, Question, variants
from backend.planner.fit.report import KINDS, Speed, Verdict
from backend.planner.fit.shape import Shape
from backend.planner.fit.speeds import speed_of
from backend.planner.fit.verdict import verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate, whether it fits, and how fast it would be; no speed where it does not start."""

    candidate: Candidate
    verdict: Verdict
    speed: Speed | None

    @property
    def fits(self) -> bool:
        return self.verdict.fits

    @property
    def runnable(self) -> bool:
        """Whether this version runs it: `serve` would make it, and it would start."""
        return self.candidate.replicas[0].plan is not None


def judged(asked: Question, shape: Shape, weights: str, kv_format: str, hosted: bool = False) -> Judged | None:
    """The first of the candidate's variants that fits, else the one that comes nearest; None where there is none."""
    found: Judged | None = None
    for made in variants(asked, shape, weights, kv_format, hosted):
        one = Judged(made, verdict(asked, made), None)
        if found is None or KINDS.index(one.verdict.kind) < KINDS.index(found.verdict.kind):
            found = one
        if found.fits:
            break
    if found is None or found.verdict.kind == "too large":
        return found
    return Judged(found.candidate, found.verdict, speed_of(asked, found.candidate))
