"""A slow, obvious sampler of one row, to compare the real one with: plain Python, floats, one sort."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from backend.batch import SampleTask
from backend.uniform import uniform64


@dataclass(frozen=True)
class SlowChoice:
    """`margin` is how far, as a share of the mass, the draw or a filter was from choosing differently."""

    token: int | None
    logprobs: list[float]
    kept: list[int]
    margin: float


def edited(logits: list[float], task: SampleTask) -> list[float]:
    sampling = task.sampling
    row = [value + sampling.logit_bias.get(token, 0.0) for token, value in enumerate(logits)]
    for token in {*task.prompt, *task.output}:
        factor = sampling.repetition_penalty
        row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
    for token, times in Counter(task.output).items():
        row[token] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if len(task.output) < sampling.min_tokens:
        for token in sampling.stop_tokens:
            row[token] = -math.inf
    return row


def slow_sample(logits: list[float], task: SampleTask) -> SlowChoice:
    sampling = task.sampling
    if any(math.isnan(value) or value == math.inf for value in logits):
        return SlowChoice(None, [], [], 1.0)
    row = edited(logits, task)
    largest = max(row)
    if largest == -math.inf:
        return SlowChoice(None, [], [], 1.0)
    normaliser = largest + math.log(math.fsum(math.exp(value - largest) for value in row))
    logprobs = [value - normaliser for value in row]
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if sampling.temperature == 0.0:
        return SlowChoice(order[0], logprobs, order[:1], 1.0)
    weight = {token: math.exp((row[token] - largest) / sampling.temperature) for token in order}
    kept, margin = order[: sampling.top_k], 1.0
    if sampling.top_p < 1.0:
        mass = math.fsum(weight[token] for token in kept)
        for count in range(1, len(kept) + 1):
            reached = math.fsum(weight[token] for token in kept[:count])
            margin = min(margin, abs(reached - sampling.top_p * mass) / mass)
            if reached >= sampling.top_p * mass:
                kept = kept[:count]
                break
    if sampling.min_p > 0.0:
        margin = min(margin, *(abs(weight[token] - sampling.min_p) for token in kept))
        kept = [token for token in kept if weight[token] >= sampling.min_p]
    mass = math.fsum(weight[token] for token in kept)
    point = uniform64(sampling.seed, len(task.output)) / 2**64 * mass
    chosen, passed = kept[-1], 0.0
    for token in kept:
        passed += weight[token]
        margin = min(margin, abs(passed - point) / mass if passed < mass * 0.999999999 else 1.0)
        if passed > point:
            chosen = token
            break
    return SlowChoice(chosen, logprobs, kept, margin)
