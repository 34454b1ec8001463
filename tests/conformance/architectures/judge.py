"""Judges one type: whether every way to divide it answers as transformers' own forward does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedConfig, PreTrainedModel

from backend.errors import UnsupportedModelError
from backend.library.files import ModelFiles
from backend.surgery.describe import trace_model
from backend.surgery.trace import Traced
from tests.conformance.architectures.checkpoint import load_reference, random_model, save
from tests.conformance.architectures.messages import Job, Reply
from tests.conformance.architectures.reference import COUNT, Answer, answer, prompts, unnoticed
from tests.conformance.architectures.shrink import divides_experts, shrink
from tests.conformance.architectures.team import Team

TOLERANCE = 1e-3
ATTEMPTS = 24


@dataclass(frozen=True)
class Way:
    """One way to run a model; parts of the MLP are uneven on purpose."""

    title: str
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    experts: Literal["tensor", "expert"] = "tensor"
    stages: int = 1


WAYS = (
    Way("TP 1", (1.0,), (1.0,)),
    Way("TP 2", (1.0, 1.0), (3.0, 2.0)),
    Way("TP 3", (1.0, 1.0, 1.0), (2.0, 3.0, 2.0)),
    Way("EP 2", (1.0, 1.0), (1.0, 1.0), "expert"),
    Way("EP 3", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "expert"),
)
STAGED_WAYS = (
    WAYS[0],
    Way("PP 2", (1.0,), (1.0,), stages=2),
    Way("PP 3", (1.0,), (1.0,), stages=3),
    Way("PP 2 x TP 2", (1.0, 1.0), (3.0, 2.0), stages=2),
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        errors: for each way that ran, the largest distance of a logit from transformers'.
        verdict: "works", perhaps "works: " and how far, "refused: " and why, or "wrong: " and what.
    """

    name: str
    errors: dict[str, float]
    verdict: str

    @property
    def works(self) -> bool:
        return self.verdict.partition(":")[0] == "works"


def judge(name: str, config: type[PreTrainedConfig], team: Team, folder: Path, ways: tuple[Way, ...] = WAYS) -> Row:
    """folder: empty; the checkpoint comes to lie there."""
    small = shrink(config)
    try:
        facts, traced = trace_model(small)
    except UnsupportedModelError as error:
        return Row(name, {}, _refused(error.why))
    model, left_out = _decisive(small, traced)
    files = save(model, folder)
    whole = answer(load_reference(files))
    row = Row(name, {}, "works: as long as each token attends to all others" if facts.positions_reason else "works")
    for way in ways:
        if way.experts == "tensor" or divides_experts(config):
            row = _try(row, way, team.run(_job(files, way)), whole)
            if not row.works:
                return row
    if left_out:
        return replace(row, verdict=f"wrong: nobody would notice without {', '.join(left_out)}")
    return row


def _decisive(small: PreTrainedConfig, traced: Traced) -> tuple[PreTrainedModel, list[str]]:
    """The first random model in which each layer's attention and each expert decides the answer, else the best one.

    With it, what could be left out of it.
    """
    names = [layer.name for layer in traced.layers]
    best: tuple[PreTrainedModel, list[str]] | None = None
    for seed in range(ATTEMPTS):
        model = random_model(small, seed)
        left_out = unnoticed(model, answer(model), names)
        if best is None or len(left_out) < len(best[1]):
            best = model, left_out
        if not left_out:
            break
    assert best is not None
    return best


def _job(files: ModelFiles, way: Way) -> Job:
    return Job(
        name=files.name,
        folder=files.folder,
        weights=files.weights,
        size=files.bytes,
        attention=way.attention,
        mlp=way.mlp,
        experts=way.experts,
        prompts=tuple(map(tuple, prompts())),
        count=COUNT,
        generation=f"{Path(files.folder).name}-{way.title.replace(' ', '-')}",
        stages=way.stages,
    )


def _try(row: Row, way: Way, reply: Reply, whole: Answer) -> Row:
    """The row with what one way came to."""
    if reply.outcome == "refused":
        return replace(row, verdict=_refused(reply.why) + ("" if way is WAYS[0] else f" ({way.title})"))
    if reply.outcome == "failed":
        return replace(row, verdict=f"wrong: {way.title} failed: {reply.why}")
    pairs = [(reply.logits_of(index, len(prompt)), whole.logits[index]) for index, prompt in enumerate(prompts())]
    error = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    row = replace(row, errors=row.errors | {way.title: error})
    if not error < TOLERANCE:
        return replace(row, verdict=f"wrong: {way.title} is off by {error:.1e}")
    if reply.tokens != whole.tokens:
        return replace(row, verdict=f"wrong: {way.title} answers other tokens")
    return row


def _refused(why: str) -> str:
    return "refused: " + why.removeprefix("What stands in the way: ").rstrip(".")
