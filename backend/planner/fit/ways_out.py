"""ways_out: what to change where a model does not fit as it is, each judged by the same code; the cheapest three.

Cheapest first means: what costs but a little accuracy (K and V in 8 bits), what is given up of the ask (users, length),
weights in fewer bits, speed (layers in host memory), then money: another GPU, another machine, at last another model.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from msgspec.structs import replace

from backend.hardware.cluster import Cluster
from backend.hardware.gpu import Gpu, GpuLink
from backend.hardware.machine import Machine
from backend.planner.fit.bench import Bench
from backend.planner.fit.candidate import Question
from backend.planner.fit.judged import Judged, judged
from backend.planner.fit.report import WayOut
from backend.planner.fit.shape import Seat, Shape
from backend.planner.fit.shapes import Division
from backend.planner.fit.verdict import verdict

_MOST = 3
# GPUs in one machine that are worth telling of.
_MOST_GPUS = 16
# Counts that are tried, from the fewest that could hold the weights on.
_TRIED = 4


def ways_out(bench: Bench, subject: Judged | None) -> tuple[WayOut, ...]:
    """Of what would be taken without any change; nothing where that fits.

    subject: the plan in the model's own formats that comes nearest.
    """
    if subject is None or subject.fits:
        return ()
    return tuple(islice(_ways(bench, subject), _MOST))


def _ways(bench: Bench, subject: Judged) -> Iterator[WayOut]:
    shape, asked = subject.candidate.shape, bench.asked
    weights, kv_format = subject.candidate.weights, subject.candidate.kv_format
    if kv_format == "model":
        small = bench.judge(shape, weights, "int8")
        if small is not None and small.fits:
            yield WayOut("Store K and V as int8.", "--kv-format int8", gives(asked, small))
    yield from _less(asked, subject)
    yield from _smaller_weights(bench, shape, weights)
    yield from _hosted(bench, shape, weights)
    yield from _another_gpu(asked, subject)
    yield from _peer(asked, subject)
    yield _smaller_model(asked, subject)


def gives(asked: Question, one: Judged) -> str:
    """What a plan that fits leads to."""
    made, users, context = one.candidate, asked.ask.users, asked.context
    whole = f"a context of {context:,}" + (f" for {users:,} users" if users > 1 else "")
    longest, at_once = made.largest_context(asked.model.facts.max_positions), made.concurrency(context)
    room = f"{at_once:,} such at once" if at_once > users else f"up to {longest:,} for one"
    time = f", {one.speed.alone.likely * 1000:.3g} ms a token" if one.speed else ""
    return f"{whole} ({room}{time})"


def _less(asked: Question, subject: Judged) -> Iterator[WayOut]:
    """Fewer users, or a shorter context, where the plan starts."""
    if subject.verdict.kind == "too large":
        return
    users, context = asked.ask.users, asked.context
    fewer = next((count for count in _halves(users) if _fits(asked, subject, count, context)), None)
    if fewer is not None:
        gained = f"a context of {context:,} for {fewer:,}"
        yield WayOut(f"Answer {fewer:,} at a time; others wait.", f"--users {fewer}", gained)
        return
    shorter = next((length for length in _halves(context) if _fits(asked, subject, users, length)), None)
    if shorter is not None and shorter >= 256:
        yield WayOut(f"Make do with a context of {shorter:,}.", f"--context {shorter}", f"{shorter:,} for {users:,}")


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        count //= 2
        yield count


def _fits(asked: Question, subject: Judged, users: int, context: int) -> bool:
    less = Question(asked.model, asked.cluster, replace(asked.ask, users=users, context=context))
    return verdict(less, subject.candidate).kind in ("roomy", "fits")


def _smaller_weights(bench: Bench, shape: Shape, weights: str) -> Iterator[WayOut]:
    smaller = {"model": ("int8", "nf4"), "int8": ("nf4",), "fp8": ("nf4",)}.get(weights, ())
    for name in smaller:
        for kv_format in ("model", "int8"):
            one = bench.judge(shape, name, kv_format)
            if one is not None and one.fits:
                beside = "" if kv_format == "model" else f", and K and V as {kv_format}"
                option = f"--weights {name}" + ("" if kv_format == "model" else f" --kv-format {kv_format}")
                yield WayOut(f"Store the weights as {name}{beside}.", option, gives(bench.asked, one))
                return


def _hosted(bench: Bench, shape: Shape, weights: str) -> Iterator[WayOut]:
    if not shape.own or bench.asked.model.unserved:
        return
    one = bench.judge(shape, weights, "model", hosted=True)
    if one is None or not one.fits or one.candidate.replicas[0].first.hosted is None:
        return
    layers = one.candidate.replicas[0].first.hosted
    what = f"Keep {len(layers.layers)} of {layers.among} layers in host memory, which is slow."
    yield WayOut(what, "--host-weights auto", gives(bench.asked, one))


def _another_gpu(asked: Question, subject: Judged) -> Iterator[WayOut]:
    """The fewest further GPUs of the first machine's kind with which it fits as it is."""
    machine = asked.cluster.machines[0]
    if not machine.gpus:
        return
    division = Division(asked.model.facts)
    counts = [count for count in range(len(machine.gpus) + 1, _MOST_GPUS + 1) if division.allows(count)]
    for count in [count for count in counts if _could_hold(machine, subject, count)][:_TRIED]:
        wider = Question(asked.model, Cluster((_with_gpus(machine, count),), ""), asked.ask)
        shape = Shape(((Seat(0, tuple(range(count))),),), own=True)
        one = judged(wider, shape, subject.candidate.weights, subject.candidate.kv_format)
        if one is not None and one.fits:
            more = count - len(machine.gpus)
            name = machine.gpus[-1].name
            what = f"Add another {name}." if more == 1 else f"Add {more} more {name}."
            yield WayOut(what, f"--tp {count}", gives(wider, one))
            return


def _could_hold(machine: Machine, subject: Judged, count: int) -> bool:
    """Whether so many GPUs have more memory than the weights take, spread evenly, and each its own terms beside."""
    draft = subject.candidate.replicas[0].first
    rank = draft.tightest
    beside = rank.spent - dict(rank.terms)["weights"]
    return sum(gpu.free for gpu in _with_gpus(machine, count).gpus) > draft.wishes.weights + count * beside // 2


def _with_gpus(machine: Machine, count: int) -> Machine:
    """The machine with further GPUs like its last one, joined as its last one is to its first."""
    gpus: list[Gpu] = list(machine.gpus)
    links = list(machine.links)
    last = gpus[-1]
    pattern = machine.link(gpus[0].index, last.index) if len(gpus) > 1 else None
    for _ in range(count - len(gpus)):
        index = max(gpu.index for gpu in gpus) + 1
        free = max(gpu.free for gpu in gpus if gpu.name == last.name)
        if pattern is not None:
            links += [GpuLink(gpu.index, index, pattern.way, pattern.nvlink, pattern.peer) for gpu in gpus]
        gpus.append(replace(last, index=index, uuid=f"{last.uuid}+{index}", free=free, holders=()))
    return replace(machine, gpus=tuple(gpus), links=tuple(links))


def _peer(asked: Question, subject: Judged) -> Iterator[WayOut]:
    """A second machine like the first, taking half of the layers."""
    machine = asked.cluster.machines[0]
    count = max(1, len(machine.gpus))
    wider = Question(asked.model, Cluster((machine, machine), "", network=asked.cluster.network), asked.ask)
    gpus = tuple(range(count)) if machine.gpus else ()
    if not Division(asked.model.facts).allows(count):
        return
    shape = Shape(((Seat(0, gpus), Seat(1, gpus)),))
    one = judged(wider, shape, subject.candidate.weights, subject.candidate.kv_format)
    if one is not None and one.fits:
        yield WayOut(
            "Give half of the layers to a second machine like this one (planned here; not served by this version).",
            "",
            gives(wider, one),
        )


def _smaller_model(asked: Question, subject: Judged) -> WayOut:
    """The parameters that would fit: those of the model, less what the plan is short of on all its devices."""
    replica = subject.candidate.replicas[0]
    facts = asked.model.facts
    needed = replica.pages_of(asked.context) * asked.users(subject.candidate.shape.replicas)
    fitting = float(facts.parameters)
    for draft in replica.drafts:
        for rank in draft.ranks:
            weights = dict(rank.terms)["weights"]
            room = rank.target.usable - (rank.spent - weights) - needed * rank.page_bytes
            fitting = min(fitting, facts.parameters * max(0.0, 0.98 * room) / max(1, weights))
    if fitting < facts.parameters / 50:
        return WayOut("Choose a smaller model.", "", "whatever its own plan says")
    billions = fitting / 1e9
    what = f"Choose a smaller model: up to about {billions:.2g} billion parameters in the same formats."
    return WayOut(what, "", "the asked context, if it keeps as much of a position as this one")
