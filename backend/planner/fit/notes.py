"""notes: sentences about a whole report: what is estimated, what was left out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backend.hardware.sharing import sharing_of
from backend.planner.fit.apart import apart
from backend.planner.fit.candidate import Question
from backend.planner.fit.report import FitPlan
from backend.planner.units import human_bytes


def notes(asked: Question, plans: Sequence[FitPlan] = ()) -> tuple[str, ...]:
    """In the order in which they matter; `plans` are those of the report."""
    return tuple(note for note in (*_notes(asked), apart(asked, plans)) if note)


def _notes(asked: Question) -> Iterator[str]:
    model, cluster = asked.model, asked.cluster
    if model.unserved:
        yield model.unserved
    if not model.exact:
        yield "Weights follow from the model's dimensions, not from headers of its files: within 1% for most models."
    if model.other_parameters and asked.ask.engine == "shardwise":
        size = human_bytes(2 * model.other_parameters)
        yield f"Its encoders of images or sound ({size}) are not loaded: only its text model is served."
    for number, machine in enumerate(cluster.machines):
        where = f" on machine {number + 1}" if len(cluster.machines) > 1 else ""
        yield from (f"Left out{where}: {fault.what}" for fault in machine.left_out)
        for gpu in machine.gpus:
            # What is harmless (a desktop, an instance that was asked for) is the doctor's to tell.
            harmful = (one for one in sharing_of(gpu, machine.pod) if one.harm)
            yield from (f"{one.what} {one.fix}".rstrip() for one in harmful)
        if machine.gpu_problem:
            yield f"The GPUs{where} could not be read: {machine.gpu_problem}"
