"""predict: what a Work does for a typical request: first token, tokens, throughput, each with its range. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from backend.planner.fit.report import Interval, Speed
from backend.planner.timing.communication import send_seconds, token_bytes
from backend.planner.timing.efficiency import Outlook
from backend.planner.timing.pace import Pace, pace
from backend.planner.timing.step import Load, StepTime, stage_time, step_overhead
from backend.planner.timing.work import Work

# A typical answer, where nobody says: what `serve` chooses its GPUs by.
PROMPT, ANSWER = 1024, 256


def predict(
    work: Work,
    *,
    prompt: int = PROMPT,
    answer: int = ANSWER,
    context: int | None = None,
    users: int = 1,
    most_sequences: int = 1,
    engine: str = "shardwise",
) -> Speed:
    """What the work is predicted to do.

    Args:
        prompt, answer: tokens of a typical request; cut to what `context` has room for, the answer first.
        context: most positions of a sequence; None for no limit.
        users: answered at the same time, over all replicas.
        most_sequences: that memory holds at the same time, over all replicas, each of such a request; the engine's own
            limit is applied here.
        engine: "shardwise", "vllm" or another of `pace`.
    """
    prompt, answer = _cut(prompt, answer, context)
    held = _per_replica(work, most_sequences, engine)
    asked = min(held, math.ceil(users / work.replicas))
    middle = prompt + answer / 2
    decoding = decode_time(work, asked, middle, engine)
    return Speed(
        first_token=_interval(lambda outlook: first_token_seconds(work, prompt, engine, outlook)),
        token=_interval(lambda outlook: token_seconds(work, asked, middle, engine, outlook)),
        alone=_interval(lambda outlook: token_seconds(work, 1, middle, engine, outlook)),
        throughput=_rate(lambda outlook: throughput(work, held, prompt, answer, engine, outlook)),
        sequences=held * work.replicas,
        communication=token_bytes(work),
        bound=decoding.bound,
    )


def answer_seconds(work: Work, prompt: int = PROMPT, answer: int = ANSWER, engine: str = "shardwise") -> float:
    """Seconds from token to token of one answer for one user, the prompt's part included: what plans are ranked by."""
    first = first_token_seconds(work, prompt, engine)
    return (first + answer * token_seconds(work, 1, prompt + answer / 2, engine)) / answer


def first_token_seconds(work: Work, prompt: int, engine: str = "shardwise", outlook: Outlook = "likely") -> float:
    """Seconds until a prompt is computed, nothing else running: in steps that follow each other through the stages.

    With m steps through p stages, p - 1 of m + p - 1 turns are bubbles.
    """
    budget = _first_pace(work, engine).step_tokens
    steps = max(1, math.ceil(prompt / budget))
    load = Load(0.0, 0.0, prompt / steps, prompt / 2, 1 / steps)
    times = _stage_seconds(work, load, engine, outlook)
    return sum(times) + (steps - 1) * max(times) + steps * step_overhead(work, load, engine).seconds


def token_seconds(
    work: Work, sequences: int, positions: float, engine: str = "shardwise", outlook: Outlook = "likely"
) -> float:
    """Seconds from token to token of each of so many sequences of one replica.

    Stages take turns with as many groups of sequences as there are stages, or sequences.
    """
    groups = min(len(work.stages), max(1, sequences))
    load = _decoding(sequences / groups, positions)
    times = _stage_seconds(work, load, engine, outlook)
    return max(sum(times), groups * max(times)) + step_overhead(work, load, engine).seconds


def decode_time(work: Work, sequences: int, positions: float, engine: str = "shardwise") -> StepTime:
    """What a decode step of so many sequences waits for, over all stages."""
    groups = min(len(work.stages), max(1, sequences))
    load = _decoding(sequences / groups, positions)
    whole = step_overhead(work, load, engine)
    for stage in work.stages:
        whole = whole + stage_time(work, stage, load, engine)
    sent = (len(work.stages) - 1) * send_seconds(work.between, int(load.rows * work.hidden * work.element))
    return whole + StepTime(0.0, 0.0, sent, 0.0)


def throughput(
    work: Work, sequences: int, prompt: int, answer: int, engine: str = "shardwise", outlook: Outlook = "likely"
) -> float:
    """Output tokens a second over all replicas, with so many sequences of each always there.

    Prompts and answers share the devices: for each token of an answer, prompt / answer tokens of prompts are computed.
    """
    groups = min(len(work.stages), max(1, sequences))
    each = sequences / groups
    load = Load(each, prompt + answer / 2, each * prompt / answer, prompt / 2, each * (1 + 1 / answer))
    times = _stage_seconds(work, load, engine, outlook)
    period = max(sum(times), groups * max(times)) + step_overhead(work, load, engine).seconds
    return work.replicas * sequences / period


def _stage_seconds(work: Work, load: Load, engine: str, outlook: Outlook) -> list[float]:
    """Each stage's, with what handing on to the next takes."""
    sent = send_seconds(work.between, int(load.rows * work.hidden * work.element))
    last = len(work.stages) - 1
    return [
        stage_time(work, stage, load, engine, outlook).seconds + (sent if number < last else 0.0)
        for number, stage in enumerate(work.stages)
    ]


def _decoding(sequences: float, positions: float) -> Load:
    return Load(sequences, positions, sampled=sequences)


def _cut(prompt: int, answer: int, context: int | None) -> tuple[int, int]:
    if context is None:
        return max(1, prompt), max(1, answer)
    answer = max(1, min(answer, context - 1))
    return max(1, min(prompt, context - answer)), answer


def _per_replica(work: Work, sequences: int, engine: str) -> int:
    most = _first_pace(work, engine).most_sequences
    return max(1, min(sequences // work.replicas, most))


def _first_pace(work: Work, engine: str) -> Pace:
    return pace(engine, work.stages[0].ranks[0].device.family)


def _interval(seconds: Callable[[Outlook], float]) -> Interval:
    """Of a time: best first."""
    return Interval(seconds("best"), seconds("likely"), seconds("worst"))


def _rate(rate: Callable[[Outlook], float]) -> Interval:
    """Of a rate: worst first."""
    return Interval(rate("worst"), rate("likely"), rate("best"))
