"""reasons: a plan in words: what limits it, what its links and formats cost, and why it cannot run here. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from backend.planner.fit.candidate import Question
from backend.planner.fit.judged import Judged
from backend.planner.fit.report import Bound, Speed
from backend.planner.units import human_bytes, human_seconds

_BOUNDS: dict[Bound, str] = {
    "memory": "reading weights and pages from memory",
    "compute": "multiplying",
    "link": "what ranks send each other",
    "launch": "starting kernels",
}
# Parts that differ by more than this are told of.
_UNEQUAL = 1.1
_LOSSES = {
    "int8": "Weights in int8 take half of 16 bits, and change answers a little: compare before you rely on it.",
    "fp8": "Weights in fp8 take half of 16 bits, and change answers a little: compare before you rely on it.",
    "nf4": "Weights in nf4 take less than a third of 16 bits, and cost accuracy that shows in hard questions.",
}


def reasons(asked: Question, one: Judged) -> tuple[str, ...]:
    """Sentences: the verdict's, what a token waits for, links, formats, and what those who chose devices said."""
    return tuple(text for text in (one.verdict.sentence, *_own(asked, one)) if text)


def blocked(asked: Question, one: Judged) -> str:
    """Why this version does not run it."""
    shape, model = one.candidate.shape, asked.model
    if model.unserved:
        return model.unserved
    if model.states:
        return "Some of its layers keep a state instead of keys and values, which this version does not serve."
    if shape.replicas > 1:
        return f"One server runs one replica: start {shape.replicas} of them, and share requests out between them."
    return "It does not fit."


def _own(asked: Question, one: Judged) -> Iterator[str]:
    made = one.candidate
    if one.speed is not None:
        yield _waits(one.speed)
        yield _sent(one, one.speed)
    yield from _division(one)
    if made.shape.replicas > 1:
        yield f"{made.shape.replicas} replicas answer independently: users share them, one answer is no faster."
    yield _LOSSES.get(made.weights, "")
    if made.kv_format not in ("model", "auto"):
        yield (
            f"K and V in {made.kv_format} take just over half of 16 bits; `shardwise doctor --kv` measures what that "
            "costs in accuracy."
        )
    if asked.model.states:
        states = made.replicas[0].state_bytes
        yield f"Layers that keep a state take {human_bytes(states)} for each sequence and device, however long it is."
    yield from made.replicas[0].reasons


def _waits(speed: Speed) -> str:
    alone = human_seconds(speed.alone.likely)
    return f"A token is predicted to take {alone} alone; a step waits for {_BOUNDS[speed.bound]}."


def _sent(one: Judged, speed: Speed) -> str:
    if not speed.communication:
        return ""
    replica = one.candidate.replicas[0]
    link = replica.first.team.link
    over = f" over {link.name}" if link is not None and len(replica.drafts) == 1 else ""
    return f"Each rank sends {human_bytes(speed.communication)} for a token{over}."


def _division(one: Judged) -> Iterator[str]:
    """How layers lie over stages, and where K and V are kept more than once."""
    replica = one.candidate.replicas[0]
    if len(replica.parts) > 1:
        counts = [part.stop - part.first for part in replica.parts]
        each = f"{counts[0]} layers each" if len(set(counts)) == 1 else f"{', '.join(map(str, counts))} layers"
        yield (
            f"{len(counts)} stages of {each}: a token passes them one after the other, so they add room and "
            "throughput, and make one answer no faster."
        )
    parts = replica.first.shares.mlp
    if max(parts) > _UNEQUAL * min(parts):
        shown = ", ".join(f"{part / sum(parts):.0%}" for part in parts)
        yield f"Ranks get parts as large as their GPUs are fast, and as their memory allows: {shown} of MLPs."
    kept = min((layer.kv_heads for group in replica.layout.groups for layer in [group.layer]), default=0)
    ranks = one.candidate.shape.tensor
    if 0 < kept < ranks:
        what = "latent" if kept == 1 else f"{kept} KV heads"
        yield f"{ranks} ranks share {what if kept > 1 else 'one ' + what} of a layer, so some keep copies of it."
