"""ways_out: what to change where a model does not fit as it is, each judged by the same code; the cheapest three.

Cheapest first means: what costs but a little accuracy (K and V in 8 bits), what is given up of the ask (users, length),
weights in fewer bits, speed (layers in host memory), then money: another GPU, another machine, at last another model.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Literal

from msgspec.structs import replace as changed

from backend.planner.fit.candidate import Question
from backend.planner.fit.judge import Judge, Subject
from backend.planner.fit.more_hardware import more_hardware
from backend.planner.fit.report import FitPlan, WayOut
from backend.planner.units import human_seconds

_MOST = 3
# Below this a context is of no use, and below this part of a model's size another one has nothing to do with it.
_SHORTEST, _SMALLEST_PART = 256, 0.02
# Of what the pool has room for, what is tried: all of it, and less.
_PARTS = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2)


def ways_out(judge: Judge, asked: Question, subject: Subject | None) -> tuple[WayOut, ...]:
    """Of the plan in the model's own formats that comes nearest; nothing where that fits."""
    if subject is None or subject.plan.verdict.fits:
        return ()
    return tuple(islice(_ways(judge, asked, subject), _MOST))


def _ways(judge: Judge, asked: Question, subject: Subject) -> Iterator[WayOut]:
    plan = subject.plan
    if plan.kv_format == "model":
        small = judge.judge(subject.shape, plan.weights, judge.smaller_kv)
        if small is not None and small.verdict.fits:
            yield WayOut(f"Store K and V as {judge.smaller_kv}.", _words("kv", small), gives(asked, small))
    yield from _less(judge, asked, subject)
    yield from _smaller_weights(judge, asked, subject)
    yield from _hosted(judge, asked, subject)
    for what, option, wider, plan in more_hardware(judge, asked, subject):
        yield WayOut(what, option, gives(wider, plan))
    yield _smaller_model(asked, subject)


def gives(asked: Question, plan: FitPlan) -> str:
    """What a plan that fits leads to."""
    users, context = asked.ask.users, asked.context
    whole = f"a context of {context:,}" + (f" for {users:,} users" if users > 1 else "")
    more = (
        f"{plan.concurrency:,} such at once" if plan.concurrency > users else f"up to {plan.largest_context:,} for one"
    )
    time = f", {human_seconds(plan.speed.alone.likely)} a token" if plan.speed else ""
    return f"{whole} ({more}{time})"


def _words(what: Literal["weights", "kv"], plan: FitPlan) -> str:
    """The option that makes the difference, of `serve` or of vLLM."""
    names = {"weights": ("--weights", "--quantization"), "kv": ("--kv-format", "--kv-cache-dtype")}[what]
    found = [pair for pair in pairwise(plan.options) if pair[0] in names]
    return " ".join(found[0]) if found else ""


def _less(judge: Judge, asked: Question, subject: Subject) -> Iterator[WayOut]:
    """Fewer users, else a shorter context: what the pool has room for, and less where that leaves no margin."""
    users, context, verdict = asked.ask.users, asked.context, subject.plan.verdict
    if verdict.term != "kv":
        return
    room = min(1.0, max(0, verdict.available) / max(1, verdict.needed))
    for part in _PARTS:
        count = int(users * room * part)
        if 1 <= count < users and _fits_for(judge, asked, subject, count, context):
            gained = f"a context of {context:,} for {count:,}"
            yield WayOut(f"Answer {count:,} at a time; others wait.", f"--users {count}", gained)
            return
    for part in _PARTS:
        length = int(context * room * part) // _SHORTEST * _SHORTEST
        if _SHORTEST <= length < context and _fits_for(judge, asked, subject, users, length):
            gained = f"{length:,} for {users:,}" if users > 1 else f"{length:,} positions, prompt and answer"
            yield WayOut(f"Make do with a context of {length:,}.", f"--context {length}", gained)
            return


def _fits_for(judge: Judge, asked: Question, subject: Subject, users: int, context: int) -> bool:
    less = Question(asked.model, asked.cluster, changed(asked.ask, users=users, context=context))
    plan = judge.judge(subject.shape, subject.plan.weights, subject.plan.kv_format, asked=less)
    return plan is not None and plan.verdict.fits


def _smaller_weights(judge: Judge, asked: Question, subject: Subject) -> Iterator[WayOut]:
    now = subject.plan.weights
    for name in judge.smaller[judge.smaller.index(now) + 1 :] if now in judge.smaller else judge.smaller:
        for kv_format in ("model", judge.smaller_kv):
            plan = judge.judge(subject.shape, name, kv_format)
            if plan is not None and plan.verdict.fits:
                beside = "" if kv_format == "model" else f", and K and V as {kv_format}"
                option = " ".join(part for part in (_words("weights", plan), _words("kv", plan)) if part)
                yield WayOut(f"Store the weights as {name}{beside}.", option, gives(asked, plan))
                return


def _hosted(judge: Judge, asked: Question, subject: Subject) -> Iterator[WayOut]:
    """Layers in host memory, in the largest format of weights that then fits."""
    if not subject.shape.own or asked.model.unserved:
        return
    now = subject.plan.weights
    for weights in (now, *(name for name in judge.smaller if name != now)):
        plan = judge.judge(subject.shape, weights, "model", hosted=True)
        if plan is not None and plan.verdict.fits and plan.hosted:
            layers = len(asked.model.facts.layer_parameters)
            stored = "" if weights == now else f", and store the weights as {weights}"
            what = f"Keep {plan.hosted} of {layers} layers in host memory, which is slow{stored}."
            option = " ".join(part for part in ("--host-weights auto", stored and _words("weights", plan)) if part)
            yield WayOut(what, option, gives(asked, plan))
            return


def _smaller_model(asked: Question, subject: Subject) -> WayOut:
    """The parameters that would fit in the same formats: the model's, less what the tightest device is short of."""
    facts, plan = asked.model.facts, subject.plan
    part = 1.0
    for device in plan.devices:
        terms = {term.name: term.bytes for term in device.terms}
        weights = max(1, terms.get("weights", 0))
        others = sum(count for name, count in terms.items() if name not in ("weights", "kv"))
        kv = plan.verdict.needed if plan.verdict.term == "kv" else 0
        part = min(part, max(0.0, 0.97 * (device.usable - others - kv)) / weights)
    if part < _SMALLEST_PART:
        return WayOut("Choose a much smaller model.", "", "the asked context, where its own plan fits")
    what = (
        f"Choose a smaller model: up to about {part * facts.parameters / 1e9:.2g} billion parameters in these formats."
    )
    return WayOut(what, "", "the asked context, if it keeps as much of a position as this one")
