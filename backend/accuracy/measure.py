"""measure: runs a text through a model in several KV formats at once, and compares them with the model's own.

Teacher-forced: every format sees the same text, whatever it would have said. All formats take a block of tokens, then
the next, so that only one block's logits are ever in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.accuracy.distance import Distance
from backend.accuracy.paged_sequence import PagedSequence
from backend.accuracy.report import ContextAccuracy, FormatAccuracy
from backend.surgery.model import ServedModel
from kvcache.attention.kernel import AttentionKernel
from quant.kv_format import KVFormats

FIRST_STOP = 512
# Below this, figures say little: so many tokens are measured whatever the time.
LEAST_TOKENS = 128
_BLOCK = 512
_BLOCK_LOGITS = 1 << 24


@dataclass(frozen=True)
class Candidate:
    """A format to be measured, and the kernels that may serve it."""

    formats: KVFormats
    kernels: tuple[AttentionKernel, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much to measure.

    Attributes:
        tokens: the longest text, in tokens.
        greedy: tokens to be generated after the text, at its first stop and its end.
        seconds: after which no new block is begun; None for as long as it takes.
    """

    tokens: int = FIRST_STOP
    greedy: int = 0
    seconds: float | None = None


class _Run:
    """One format's sequence, what was summed of it, and its logits of the newest token."""

    def __init__(self, model: ServedModel, candidate: Candidate, positions: int) -> None:
        self.formats = candidate.formats
        self.sequence = PagedSequence(model, candidate.formats, candidate.kernels, positions)
        self.distance = Distance()
        self.next_token = 0

    def logs(self, start: int, tokens: Sequence[int]) -> Tensor:
        logs = torch.log_softmax(self.sequence.feed(start, tokens), -1)
        self.next_token = int(logs[-1].argmax())
        return logs

    def step(self, position: int, token: int) -> int:
        return int(self.sequence.feed(position, (token,), last_only=True)[0].argmax())


def measure(
    model: ServedModel,
    text: Sequence[int],
    own: Candidate,
    candidates: Sequence[Candidate],
    limits: Limits,
    on_progress: Callable[[int, int], None],
) -> tuple[ContextAccuracy, ...]:
    """The formats at `FIRST_STOP` tokens and at the end of what the limits allow, the model's own first.

    text: at least two tokens. on_progress: called with tokens done and their total, over all formats.
    """
    if len(text) < 2:
        raise ValueError(f"a text of {len(text)} tokens has no next token to compare")
    longest = min(limits.tokens, len(text) - 1)
    runs = [_Run(model, candidate, longest + limits.greedy) for candidate in (own, *candidates)]
    clock = _Clock(limits.seconds)
    contexts: list[ContextAccuracy] = []
    position, total = 0, longest * len(runs)
    block = _block(model.facts.vocabulary)
    on_progress(0, total)
    while position < longest:
        stop = longest if contexts or longest < FIRST_STOP else FIRST_STOP
        count = min(block, stop - position)
        targets = torch.tensor(text[position + 1 : position + count + 1], device=model.device)
        begin = time.monotonic()
        base: Tensor | None = None
        for index, run in enumerate(runs):
            logs = run.logs(position, text[position : position + count])
            base = logs if base is None else base
            run.distance.add(logs, base, targets)
            on_progress(position * len(runs) + count * (index + 1), total)
        position += count
        over = position >= LEAST_TOKENS and clock.is_over_after(time.monotonic() - begin)
        if position == stop or over:
            begin = time.monotonic()
            generated, differences = _greedy(runs, position, limits.greedy, clock)
            clock.reserve(time.monotonic() - begin)
            contexts.append(_context(runs, position, generated, differences))
        if over:
            break
    on_progress(total, total)
    return tuple(contexts)


def _block(vocabulary: int) -> int:
    """Tokens computed at once: a power of two, so that blocks end where the first stop is."""
    fitting = max(16, min(_BLOCK, _BLOCK_LOGITS // vocabulary))
    return 1 << (fitting.bit_length() - 1)


class _Clock:
    """The time that is left, less what is kept for the last comparison."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._reserved = 0.0

    def reserve(self, seconds: float) -> None:
        self._reserved = seconds

    def is_over_after(self, seconds: float) -> bool:
        """Whether another `seconds` would be too many."""
        return self._end is not None and time.monotonic() + seconds + self._reserved > self._end

    @property
    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end


def _greedy(runs: list[_Run], position: int, most: int, clock: _Clock) -> tuple[int, list[int | None]]:
    """Continues the text greedily: how many tokens there are to compare, and each run's first difference in them."""
    if most == 0:
        return 0, [None] * len(runs)
    own, *others = runs
    tokens = [own.next_token]
    while len(tokens) < most and not clock.is_over:
        tokens.append(own.step(position + len(tokens) - 1, tokens[-1]))
    return len(tokens), [None, *(_first_difference(run, position, tokens) for run in others)]


def _first_difference(run: _Run, position: int, tokens: list[int]) -> int | None:
    mine = run.next_token
    for index, token in enumerate(tokens):
        if mine != token:
            return index
        if index + 1 < len(tokens):
            mine = run.step(position + index, token)
    return None


def _context(runs: list[_Run], tokens: int, generated: int, differences: list[int | None]) -> ContextAccuracy:
    own = runs[0].distance.perplexity
    return ContextAccuracy(
        tokens=tokens,
        generated=generated,
        formats=tuple(
            FormatAccuracy(
                kv_format=str(run.formats),
                token_bytes=run.sequence.layout.bytes_per_token,
                perplexity=run.distance.perplexity,
                change=run.distance.perplexity / own - 1.0,
                divergence=run.distance.divergence,
                first_difference=difference,
            )
            for run, difference in zip(runs, differences, strict=True)
        ),
    )
