"""What a token of one answer takes on a group of GPUs: a roofline and two all-reduces a layer. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence

from backend.planner.links import Link
from backend.planner.model_facts import ModelFacts
from backend.planner.shares import touched_experts

# Of a GPU's memory bandwidth, what decoding reaches: 0.62 to 0.84 on H100, 0.68 to 0.70 on A100 (published figures of
# 8B and 70B models in bfloat16).
_REACHED = 0.7
# Of an answer that stands for all: its prompt's all-reduces are large, and slow links show there first.
_PROMPT, _ANSWER = 1024, 256


def token_seconds(
    ranks: Sequence[ModelFacts], speeds: Sequence[float], element: int, link: Link | None, hidden: int
) -> float:
    """Seconds from token to token of one answer, its part of what adding up the prompt took included.

    Ranks wait for each other after attention, after MLPs and at the end, so each of these takes what the slowest takes.

    ranks: each rank's share of the model. speeds: GB/s of each rank's memory. element: bytes of a weight.
    """
    phases = zip(*(_phases(share, speed) for share, speed in zip(ranks, speeds, strict=True)), strict=True)
    reading = sum(max(phase) for phase in phases) * element / _REACHED
    return reading + _adding(link, len(ranks), 2 * len(ranks[0].layers), hidden * element)


def _phases(share: ModelFacts, speed: float) -> tuple[float, ...]:
    """Seconds a byte of weight, for what a rank reads of attention, of MLPs, and of the output layer."""
    attention = share.attention_parameters + share.replicated_parameters
    mlp = sum(part.parameters for part in share.columns) + touched_experts(share, 1)
    return tuple(parameters / (speed * 1e9) for parameters in (attention, mlp, share.output_parameters))


def _adding(link: Link | None, ranks: int, times: int, count: int) -> float:
    """Seconds for `times` all-reduces of `count` bytes a token, and the prompt's spread over the answer's tokens."""
    if link is None:
        return 0.0
    prompt = link.all_reduce_seconds(ranks, count * _PROMPT) / _ANSWER
    return times * (link.all_reduce_seconds(ranks, count) + prompt)
