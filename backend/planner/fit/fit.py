"""fit: what of a model fits on a cluster, in every way worth planning, ranked. Pure: no torch, no files, no clock."""

from __future__ import annotations

from dataclasses import replace

from backend.errors import OutOfMemoryError, SettingError
from backend.hardware.cluster import Cluster
from backend.planner.fit.ask import FitAsk
from backend.planner.fit.bench import Bench
from backend.planner.fit.candidate import Candidate, Question, plain_settings
from backend.planner.fit.chosen import as_served
from backend.planner.fit.judge import Judge, Subject
from backend.planner.fit.judged import Judged
from backend.planner.fit.known_model import KnownModel
from backend.planner.fit.notes import notes
from backend.planner.fit.rank import best, ranked
from backend.planner.fit.replica import served
from backend.planner.fit.report import KINDS, FitReport
from backend.planner.fit.resolve import resolve
from backend.planner.fit.shape import Seat, Shape
from backend.planner.fit.shapes import Division, shapes
from backend.planner.fit.speeds import speed_of
from backend.planner.fit.verdict import verdict
from backend.planner.fit.vllm_bench import VllmBench
from backend.planner.fit.ways_out import ways_out

_OWN = ("model", "model")


def fit(model: KnownModel, cluster: Cluster, ask: FitAsk) -> FitReport:
    """Every plan worth looking at, best first by the goal, with what to change where none fits.

    Raises SettingError for a context that the model was not made for, and for what no engine has.
    """
    asked = Question(model, cluster, resolve(model, ask))
    if asked.ask.engine == "vllm":
        bench = VllmBench(asked)
        every = [shape for shape in shapes(cluster, Division(model.facts)) if not shape.free]
        entries = [Subject(plan, shape) for shape in every for plan in bench.of_shape(shape)]
        return _report(asked, bench, entries, None)
    return _shardwise(replace(asked, model=as_served(model, asked.context)))


def _shardwise(asked: Question) -> FitReport:
    bench = Bench(asked)
    found, own = _judged(bench), _serve(asked)
    entries = [Subject(bench.plan(one), one.candidate.shape) for one in found if own is None or not _same(one, own)]
    serve = None
    if own is not None:
        serve = Subject(bench.plan(own, plain=True), own.candidate.shape)
        entries.insert(0, serve)
    return _report(asked, bench, entries, serve)


def _report(asked: Question, judge: Judge, entries: list[Subject], serve: Subject | None) -> FitReport:
    """Raises SettingError where no plan could be made at all."""
    if not entries:
        raise SettingError(
            f"{asked.model.name} cannot be planned for {asked.cluster.name}.",
            f"{asked.ask.engine} has no way to put it on these devices in the formats that were asked for.",
            "Leave --weights and --kv-format away, or name hardware with GPUs.",
        )
    shown = [one.plan for one in _worth_showing(entries)]
    order = ranked(shown, asked.ask.goal, serve.plan if serve else None)
    return FitReport(
        model=asked.model.name,
        source=asked.model.source,
        hardware=asked.cluster.name,
        ask=asked.ask,
        plans=tuple(order),
        best=best(order),
        serve=next((number for number, plan in enumerate(order) if serve and plan is serve.plan), None),
        ways_out=ways_out(judge, asked, serve or _nearest(entries, served=asked.ask.engine == "shardwise")),
        notes=notes(asked, order),
    )


def _worth_showing(entries: list[Subject]) -> list[Subject]:
    """Without what is too large, where anything is not: then only what `serve` could be asked for, in own formats."""
    if all(one.plan.verdict.kind == "too large" for one in entries):
        return entries
    return [
        one
        for one in entries
        if one.plan.verdict.kind != "too large" or (one.shape.own and (one.plan.weights, one.plan.kv_format) == _OWN)
    ]


def _judged(bench: Bench) -> list[Judged]:
    """Every shape in the formats worth trying; where none fits, layers in host memory, then a processor beside GPUs."""
    asked = bench.asked
    every = shapes(asked.cluster, Division(asked.model.facts))
    found = [one for shape in every for one in bench.of_shape(shape)]
    own = [shape for shape in every if shape.own and shape.experts == "auto"]
    if any(one.fits and one.candidate.shape.own for one in found) or not own:
        return found
    found += bench.hosted(own[-1])
    if asked.cluster.machines[0].gpus and not any(one.fits for one in found):
        found += bench.of_shape(Shape(((Seat(0),),), own=True))
    return found


def _serve(asked: Question) -> Judged | None:
    """What `serve` takes by itself on the first machine; None where it refuses."""
    model, machine, ask = asked.model, asked.cluster.machines[0], asked.ask
    considered = "model" in (ask.weights or _OWN) and "model" in (ask.kv_formats or _OWN)
    if model.unserved or model.states or not considered:
        return None
    settings = plain_settings(asked, bool(machine.gpus), users=1)
    try:
        replica = served(settings, model, machine, "model")
    except (SettingError, OutOfMemoryError):
        return None
    if replica.plan is None:
        return None
    made = Candidate(Shape((replica.seats,), own=True), "model", "model", False, settings, (replica,))
    return Judged(made, verdict(asked, made), speed_of(asked, made))


def _same(one: Judged, own: Judged) -> bool:
    """Whether both come to the same Plan."""
    plan, other = one.candidate.replicas[0].plan, own.candidate.replicas[0].plan
    if plan is None or other is None:
        return False
    return (plan.ranks, plan.max_context, plan.max_sequences, plan.experts, plan.kv_format, plan.weight_format) == (
        other.ranks, other.max_context, other.max_sequences, other.experts, other.kv_format, other.weight_format,
    )  # fmt: skip


def _nearest(entries: list[Subject], served: bool) -> Subject:
    """In the model's own formats, what comes nearest to fitting; with `served`, on devices that `serve` could take."""
    own = [one for one in entries if one.plan.weights == "model" and not one.plan.hosted] or entries
    return min([one for one in own if one.shape.own or not served] or own, key=_distance)


def _distance(one: Subject) -> tuple[int, bool, int]:
    """What a processor lacks, whose memory is large, says little to a person with GPUs."""
    processor = one.plan.devices[0].gpu is None
    return KINDS.index(one.plan.verdict.kind), processor, -min(device.unused for device in one.plan.devices)
