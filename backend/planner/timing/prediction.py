"""predict: what a Work does for a typical request: first token, tokens, throughput, each with its range. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from backend.planner.fit.report import Interval, Speed
from backend.planner.timing.communication import token_bytes
from backend.planner.timing.efficiency import Outlook
from backend.planner.timing.forecast import Forecast
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
        prompt, answer: tokens of a typical request; cut to what `context` has room for, the prompt first.
        context: most positions of a sequence; None for no limit.
        users: answered at the same time, over all replicas.
        most_sequences: that memory holds at the same time, over all replicas, each of such a request; the engine's own
            limit is applied here.
        engine: "shardwise", "vllm" or another of `pace`.
    """
    prompt, answer = _cut(prompt, answer, context)
    forecast = Forecast(work, engine)
    held = max(1, min(most_sequences // work.replicas, forecast.pace.most_sequences))
    asked = max(1, min(held, math.ceil(users / work.replicas)))
    middle = prompt + answer / 2
    token = _interval(lambda outlook: forecast.token(asked, middle, outlook))
    return Speed(
        first_token=_interval(lambda outlook: forecast.first_token(prompt, outlook)),
        token=token,
        alone=token if asked == 1 else _interval(lambda outlook: forecast.token(1, middle, outlook)),
        throughput=_rate(lambda outlook: forecast.throughput(held, prompt, answer, outlook)),
        sequences=held * work.replicas,
        communication=token_bytes(work),
        bound=forecast.step(asked, middle).bound,
    )


def answer_seconds(work: Work, prompt: int = PROMPT, answer: int = ANSWER, engine: str = "shardwise") -> float:
    """Seconds from token to token of one answer for one user, the prompt's part included: what plans are ranked by."""
    forecast = Forecast(work, engine)
    return forecast.first_token(prompt) / answer + forecast.token(1, prompt + answer / 2)


def _cut(prompt: int, answer: int, context: int | None) -> tuple[int, int]:
    prompt, answer = max(1, prompt), max(1, answer)
    if context is None or prompt + answer <= context:
        return prompt, answer
    answer = max(1, min(answer, context - 1))
    return max(1, context - answer), answer


def _interval(seconds: Callable[[Outlook], float]) -> Interval:
    """Of a time: best first."""
    return Interval(seconds("best"), seconds("likely"), seconds("worst"))


def _rate(rate: Callable[[Outlook], float]) -> Interval:
    """Of a rate: worst first."""
    return Interval(rate("worst"), rate("likely"), rate("best"))
