"""Greedy decoding of several prompts in one flat batch over a ServedModel, with chunked prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from backend.parallel.group import Group
from backend.planner.model_facts import ModelFacts
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache


class Decoded(Protocol):
    """What is asked of a ServedModel here."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def recompute_lengths(self) -> Sequence[int]: ...

    def forward(
        self, tokens: Tensor, positions: Tensor, rope_lengths: Tensor, rows: Tensor, context: PlainAttentionContext, /
    ) -> Tensor: ...


@dataclass
class _Progress:
    prompt: list[int]
    tokens: list[int]
    computed: int = 0
    cache: SequenceCache = field(default_factory=SequenceCache)


def decode(
    model: Decoded,
    prompts: list[list[int]],
    count: int,
    *,
    chunk: int,
    zeroed_slot: int | None = None,
    group: Group | None = None,
) -> list[list[int]]:
    """`count` greedy tokens per prompt. At most `chunk` tokens of a sequence are computed in a pass.

    group: for one rank of several, which all decode the same.
    """
    running = [_Progress(list(prompt), list(prompt)) for prompt in prompts]
    while any(len(one.tokens) < len(one.prompt) + count for one in running):
        live = [one for one in running if len(one.tokens) < len(one.prompt) + count]
        _step(model, live, chunk, zeroed_slot, group)
    return [one.tokens[len(one.prompt) :] for one in running]


def _step(model: Decoded, live: list[_Progress], chunk: int, zeroed_slot: int | None, group: Group | None) -> None:
    parts, tokens, positions, lengths, rows, sampled = [], [], [], [], [], []
    for one in live:
        if any(one.computed == limit and len(one.tokens) > limit for limit in model.recompute_lengths):
            one.computed, one.cache = 0, SequenceCache()
        taken = one.tokens[one.computed : one.computed + chunk]
        parts.append((one.cache, one.computed, len(taken)))
        tokens += taken
        positions += range(one.computed, one.computed + len(taken))
        lengths += [len(one.tokens)] * len(taken)
        one.computed += len(taken)
        if one.computed == len(one.tokens):
            rows.append(len(tokens) - 1)
            sampled.append(one)
    context = PlainAttentionContext(model.facts, parts)
    context.zeroed_slot = zeroed_slot
    logits = model.forward(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(lengths),
        torch.tensor(rows, dtype=torch.long),
        context,
    )
    if group is not None:  # the first rank's logits; the others have zeros
        logits = logits.clone()
        group.all_reduce(logits)
    assert context.slots_called == list(range(len(model.facts.layers)))
    for one, row in zip(sampled, logits, strict=True):
        one.tokens.append(int(row.argmax()))
