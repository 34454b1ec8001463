"""more_hardware: what else to buy or rent where a model does not fit: GPUs alike, others, a second machine. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace as changed

from backend.errors import SettingError
from backend.hardware.built_machine import GpuGroup, build_machine
from backend.hardware.cluster import Cluster
from backend.hardware.gpu import Gpu, GpuLink
from backend.hardware.gpu_names import short_name
from backend.hardware.gpu_table import GpuFacts, gpu_facts, gpu_table
from backend.hardware.machine import Machine
from backend.planner.cost import table_price
from backend.planner.fit.candidate import Question
from backend.planner.fit.judge import Judge, Subject
from backend.planner.fit.report import FitPlan
from backend.planner.fit.shape import Seat, Shape
from backend.planner.fit.shapes import Division

# What to say, the option that names the hardware ("" where none does), the question with it, and the plan on it.
More = tuple[str, str, Question, FitPlan]

# GPUs in one machine that are worth telling of, and how many of another kind machines are sold with.
_MOST_GPUS, _SOLD = 16, (1, 2, 4, 8)
# Counts and kinds that are tried, from the least that could hold the weights on.
_TRIED = 4
# Of a GPU's memory, what weights may take at most to be worth trying.
_SHARE = 0.85


def more_hardware(judge: Judge, asked: Question, subject: Subject) -> Iterator[More]:
    """Further GPUs alike, another kind of GPU, a second machine: in the subject's formats, then in smaller ones."""
    for weights in (subject.plan.weights, *(name for name in judge.smaller if name != subject.plan.weights)):
        for way in (_alike, _other_kind, _peer):
            for what, option, wider, plan in way(judge, asked, subject, weights):
                if weights == subject.plan.weights:
                    yield what, option, wider, plan
                    continue
                stored = f"{what.removesuffix('.')}, and store the weights as {weights}."
                yield stored, f"{option} --weights {weights}" if option else "", wider, plan


def _alike(judge: Judge, asked: Question, subject: Subject, weights: str) -> Iterator[More]:
    """The fewest further GPUs of the first machine's kind."""
    machine = asked.cluster.machines[0]
    if not machine.gpus:
        return
    now, needed = len(machine.gpus), _weights(judge, subject, weights)
    counts = [
        count
        for count in range(now + 1, _MOST_GPUS + 1)
        if sum(gpu.free for gpu in _with_gpus(machine, count).gpus) > needed
        and Division(asked.model.facts).allows(count)
    ]
    for count in counts[:_TRIED]:
        wider, plan = _on(judge, asked, _with_gpus(machine, count), weights, subject.plan.kv_format)
        if plan is not None and plan.verdict.fits:
            name, more = machine.gpus[-1].name, count - now
            what = f"Add another {name}." if more == 1 else f"Add {more} more {name}."
            yield what, _option(_with_gpus(machine, count)), wider, plan
            return


def _other_kind(judge: Judge, asked: Question, subject: Subject, weights: str) -> Iterator[More]:
    """The kind and count that cost least an hour, of those that the table has a price for."""
    needed = _weights(judge, subject, weights)
    tried = 0
    for count, kind in _kinds(asked, needed):
        try:
            machine = build_machine([GpuGroup(kind, count)])
        except SettingError:
            continue
        wider, plan = _on(judge, asked, machine, weights, subject.plan.kv_format)
        if plan is not None and plan.verdict.fits:
            yield f"Use {_counted(count, kind)} instead.", _option(machine), wider, plan
            return
        tried += 1
        if tried == _TRIED:
            return


def _kinds(asked: Question, needed: int) -> list[tuple[int, GpuFacts]]:
    """Counts of kinds that could hold so many bytes of weights, the cheapest first."""
    own = {facts.name for gpu in asked.cluster.machines[0].gpus if (facts := gpu_facts(gpu.name))}
    found: list[tuple[float, int, str, GpuFacts]] = []
    for kind in gpu_table():
        price = table_price(kind.name)
        if price is None or kind.name in own or not kind.compute_capability.replace(".", "").isdigit():
            continue
        least = needed / (_SHARE * kind.mem_total_gib_reported * (1 << 30))
        count = next((one for one in _SOLD if one >= least and Division(asked.model.facts).allows(one)), None)
        if count is not None:
            found.append((count * price.usd, count, kind.name, kind))
    return [(count, kind) for _, count, _, kind in sorted(found, key=lambda one: one[:3])]


def _peer(judge: Judge, asked: Question, subject: Subject, weights: str) -> Iterator[More]:
    """A second machine like the first, taking half of the layers."""
    machine, facts = asked.cluster.machines[0], asked.model.facts
    count = max(1, len(machine.gpus))
    if not Division(facts).allows(count) or len(facts.layers) < 2:
        return
    wider = Question(asked.model, Cluster((machine, machine), "", network=asked.cluster.network), asked.ask)
    gpus = tuple(range(count)) if machine.gpus else ()
    shape = Shape(((Seat(0, gpus), Seat(1, gpus)),))
    plan = judge.judge(shape, weights, subject.plan.kv_format, asked=wider)
    if plan is not None and plan.verdict.fits:
        what = "Give half of the layers to a second machine like this one, which `shardwise peers invite` lets join."
        yield what, "", wider, plan


def _on(
    judge: Judge, asked: Question, machine: Machine, weights: str, kv_format: str
) -> tuple[Question, FitPlan | None]:
    """The model over all GPUs of that machine."""
    wider = Question(asked.model, Cluster((machine,), ""), asked.ask)
    shape = Shape(((Seat(0, tuple(range(len(machine.gpus)))),),), own=True)
    return wider, judge.judge(shape, weights, kv_format, asked=wider)


def _weights(judge: Judge, subject: Subject, weights: str) -> int:
    """Bytes of all weights in that format, as a plan for the same devices counts them."""
    plan: FitPlan | None = subject.plan
    if weights != subject.plan.weights:
        plan = judge.judge(subject.shape, weights, subject.plan.kv_format)
    held = sum(
        term.bytes for device in (plan or subject.plan).devices for term in device.terms if term.name == "weights"
    )
    return held // subject.plan.replicas


def _option(machine: Machine) -> str:
    """`fit`'s option that plans for such a machine; empty where words would not make the same GPUs and links."""
    kind = gpu_facts(machine.gpus[0].name)
    if kind is None:
        return ""
    try:
        built = build_machine([GpuGroup(kind, len(machine.gpus))])
    except SettingError:
        return ""
    if _ways(built) != _ways(machine):
        return ""
    return f'--hardware "{len(machine.gpus)}x {short_name(kind.name).replace(" ", "-")}"'


def _ways(machine: Machine) -> tuple[object, ...]:
    gpus = [(gpu.name, gpu.free) for gpu in machine.gpus]
    return gpus, sorted((link.way, link.nvlink, link.peer) for link in machine.links)


def _counted(count: int, kind: GpuFacts) -> str:
    return f"one {kind.name}" if count == 1 else f"{count} {kind.name}"


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
        gpus.append(changed(last, index=index, uuid=f"{last.uuid}+{index}", free=free, holders=()))
    return changed(machine, gpus=tuple(gpus), links=tuple(links))
