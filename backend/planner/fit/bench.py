"""Bench: judges shapes in formats, each once; which are tried for a shape is decided here. It keeps what it judged."""

from __future__ import annotations

from collections.abc import Iterator

from backend.planner.fit.candidate import Question
from backend.planner.fit.costs import plan_cost
from backend.planner.fit.fit_plans import fit_plan
from backend.planner.fit.judged import Judged, judged
from backend.planner.fit.report import FitPlan
from backend.planner.fit.shape import Shape
from backend.planner.weight_choice import serves

# From the model's own down; fp8 takes as many bytes as int8 and is tried beside it where a GPU multiplies it.
_SMALLER = ("int8", "nf4")
# Of the 8-bit formats of K and V, which take the same bytes, the one that every device has.
_SMALLER_KV = "int8"
_OWN = "model"
# How much faster fp8 must be than int8 to be shown beside it.
_WORTH = 1.1


class Bench:
    """One report's candidates; a `ways_out.Judge`."""

    smaller: tuple[str, ...] = _SMALLER
    smaller_kv: str = _SMALLER_KV

    def __init__(self, asked: Question) -> None:
        self.asked = asked
        self._judged: dict[tuple[Shape, str, str, bool], Judged | None] = {}

    def judge(
        self, shape: Shape, weights: str, kv_format: str, hosted: bool = False, asked: Question | None = None
    ) -> FitPlan | None:
        """`tried`, as a plan; for another question than the report's where one is given."""
        if asked is None:
            one = self.tried(shape, weights, kv_format, hosted)
        else:
            one = _judge(asked, shape, weights, kv_format, hosted)
        return None if one is None else self.plan(one, asked)

    def plan(self, one: Judged, asked: Question | None = None, plain: bool = False) -> FitPlan:
        """`plain`: whether this is what `serve` takes without options."""
        asked = asked or self.asked
        return fit_plan(asked, one, plan_cost(asked, one), plain)

    def tried(self, shape: Shape, weights: str, kv_format: str, hosted: bool = False) -> Judged | None:
        """None where the model, its devices or main memory do not allow it."""
        key = (shape, weights, kv_format, hosted)
        if key not in self._judged:
            self._judged[key] = _judge(self.asked, shape, weights, kv_format, hosted)
        return self._judged[key]

    def of_shape(self, shape: Shape) -> list[Judged]:
        """The shape in the formats that were asked for, else in those that it is worth trying in."""
        ask = self.asked.ask
        if ask.weights or ask.kv_formats:
            pairs = ((one, kv) for one in ask.weights or (_OWN, *_SMALLER) for kv in ask.kv_formats or (_OWN,))
            return self._found(self.tried(shape, *pair) for pair in pairs)
        return self._found(self._worth(shape))

    def hosted(self, shape: Shape) -> list[Judged]:
        """The shape with layers in host memory, in the largest format of weights that then fits."""
        for weights in self.asked.ask.weights or (_OWN, *_SMALLER):
            one = self.tried(shape, weights, next(iter(self.asked.ask.kv_formats), _OWN), hosted=True)
            if one is not None and one.fits:
                return [one] if one.candidate.replicas[0].first.hosted else []
        return []

    def _worth(self, shape: Shape) -> Iterator[Judged | None]:
        """The model's own formats; smaller ones as long as they are needed, and one where `serve` could take it."""
        plain = self.tried(shape, _OWN, _OWN)
        yield plain
        if shape.experts != "auto" and plain is not None and plain.fits:
            return
        yield from self._smaller_kv(shape, plain)
        if plain is not None and plain.fits and not shape.own:
            return
        eight = self.tried(shape, "int8", _OWN)
        yield eight
        other = self.tried(shape, "fp8", _OWN)
        if eight is None or (other is not None and _faster(other, eight)):
            yield other
        yield from self._smaller_kv(shape, eight)
        if eight is None or not eight.fits:
            four = self.tried(shape, "nf4", _OWN)
            yield four
            yield from self._smaller_kv(shape, four)

    def _smaller_kv(self, shape: Shape, plain: Judged | None) -> Iterator[Judged | None]:
        """A smaller format of K and V where it starts without, and room is scarce or is what the goal is about."""
        if plain is None or (plain.verdict.kind == "too large" and plain.verdict.term != "kv"):
            return
        scarce = plain.verdict.kind != "roomy"
        if scarce or (shape.own and self.asked.ask.goal != "latency"):
            yield self.tried(shape, plain.candidate.weights, _SMALLER_KV)

    def _found(self, tried: Iterator[Judged | None]) -> list[Judged]:
        return list({id(one): one for one in tried if one is not None}.values())


def _judge(asked: Question, shape: Shape, weights: str, kv_format: str, hosted: bool = False) -> Judged | None:
    if not serves(weights, _capability(asked, shape)):
        return None
    return judged(asked, shape, weights, kv_format, hosted)


def _capability(asked: Question, shape: Shape) -> tuple[int, int] | None:
    """The lowest of the shape's GPUs; None for processors."""
    machines = asked.cluster.machines
    seats = [seat for replica in shape.seats for seat in replica]
    found = [machines[seat.machine].gpus[number].capability for seat in seats for number in seat.gpus]
    return min(found, default=None)


def _faster(one: Judged, other: Judged) -> bool:
    """Whether a format of as many bytes is worth a line of its own."""
    if one.speed is None or other.speed is None:
        return one.fits and not other.fits
    alone, throughput = one.speed.alone.likely, one.speed.throughput.likely
    return alone * _WORTH < other.speed.alone.likely or throughput > _WORTH * other.speed.throughput.likely
