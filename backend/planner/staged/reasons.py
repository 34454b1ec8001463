"""reasons: a StagedDraft in sentences: which layers where and why, the ways between, and the expected speed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from backend.planner.staged.draft import StagedDraft
from backend.planner.timing.forecast import Forecast
from backend.planner.timing.prediction import ANSWER, PROMPT
from backend.planner.units import human_bytes


def reasons(staged: StagedDraft) -> tuple[str, ...]:
    """A sentence for each stage, one for the ways between them, one for the speed."""
    return (*_stages(staged), _ways(staged), speed(staged))


def speed(staged: StagedDraft) -> str:
    """What tokens are predicted to take, and which stage is waited for."""
    forecast = Forecast(staged.work)
    positions = PROMPT + ANSWER / 2
    stages = len(staged.drafts)
    alone, many = forecast.token(1, positions), forecast.token(stages, positions)
    if stages == 1:
        return f"A token is predicted to take {_time(alone)} alone."
    return (
        f"A token is predicted to take {_time(alone)} alone, and {_time(many)} with {stages} sequences, which keep "
        "all stages at work."
    )


def _stages(staged: StagedDraft) -> Iterator[str]:
    by_hand = bool(staged.wishes.settings.stage_layers)
    for number, (part, draft) in enumerate(zip(staged.parts, staged.drafts, strict=True)):
        weights = sum(dict(rank.terms)["weights"] for rank in draft.ranks)
        ends = [name for name, there in (("the embedding", part.first == 0), ("the output layer", part.last)) if there]
        beside = f" with {' and '.join(ends)}" if ends else ""
        count = len(draft.ranks)
        label = draft.ranks[0].target.label
        over = label if count == 1 else f"{count} {'GPUs' if draft.cuda else 'processes'}"
        why = ", as --layers asks" if by_hand else ""
        yield (
            f"Stage {number + 1} on {staged.site(number).name} has layers {part.first + 1} to {part.stop} of {part.of}"
            f"{beside}: {human_bytes(weights)} of weights on {over}{why}."
        )


def _ways(staged: StagedDraft) -> str:
    """Each way once, with the stages that it joins."""
    found = dict.fromkeys(
        f"{way.name} ({_latency(way.latency)}, {way.reached:.2g} GB/s{', assumed' if way.source == 'assumed' else ''})"
        for way in staged.work.ways
    )
    return f"Hidden states pass over {' and '.join(found)} from stage to stage." if found else ""


def _latency(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
