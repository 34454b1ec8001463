"""Sampler: chooses the next token of each sequence from its logits. Which ones ask is the runner's business.

The order of a choice is: refuse logits that are not finite; bias, penalties and held-back stop tokens
(`logit_edits`); logprobs; then either the largest logit, or temperature, top-k, top-p and min-p in the order
of transformers' warpers (each works on what the one before it left; top-p keeps the smallest set that
reaches p, as in transformers and vLLM; where logits tie at top-k's edge, exactly k stay, lower ids first)
and one draw.

A draw walks the tokens from the likeliest down (equal ones by id) until it has passed a share of the mass
given by `uniform64(seed, output index)`. Probabilities are computed in float64 and summed as 40-bit fixed
point integers, because sums of integers do not depend on their order: neither the batch, nor the number of
threads, nor the device changes which token a draw meets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.batch import Sampled, SampleTask
from backend.logit_edits import edit, needs_edits
from backend.request import Sampling
from backend.uniform import uniform64

_UNIT_BITS = 40
# Weights relative to the likeliest token's 2**40. Nearly every draw is decided by the few tokens above the
# first cut, and sorting those costs a hundredth of sorting a vocabulary; the last cut takes every token that
# has a weight.
_CUTS = (1 << 27, 1 << 18, 1 << 9, 1)


class Sampler:
    """Samples rows of logits on one device. Holds no state: equal arguments give equal tokens.

    Args:
        vocabulary: number of logits of a row; at most 2**22, so that masses fit 63 bits.
        device: where the logits lie.
    """

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        if not 0 < vocabulary <= 1 << 22:
            raise ValueError(f"a vocabulary of {vocabulary} tokens")
        self._vocabulary = vocabulary
        self._on_cpu = device.type == "cpu"
        # One row at a time stays in a core's cache on CPU; a GPU wants many, within some hundred MB of
        # temporaries.
        self._block_rows = 1 if self._on_cpu else max(1, (1 << 24) // vocabulary)

    def sample(self, logits: Tensor, tasks: Many[SampleTask]) -> list[Sampled]:
        """One choice per row of logits [S, vocabulary] float32, which are not changed.

        A row that holds NaN or +Inf, or nothing but -Inf, gives `Sampled(token=None)`.
        """
        if tuple(logits.shape) != (len(tasks), self._vocabulary):
            raise ValueError(f"logits {tuple(logits.shape)} for {len(tasks)} tasks of {self._vocabulary}")
        if not tasks:
            return []
        tokens = self._largest(logits)
        sampled = [Sampled(token) for token in tokens]
        special = [row for row, task in enumerate(tasks) if tokens[row] is not None and not _plain(task)]
        for start in range(0, len(special), self._block_rows):
            rows = special[start : start + self._block_rows]
            block = self._copy(logits, rows)
            for row, choice in zip(rows, self._sample_block(block, [tasks[row] for row in rows]), strict=True):
                sampled[row] = choice
        return sampled

    def _copy(self, logits: Tensor, rows: list[int]) -> Tensor:
        """The rows as a block of their own: [rows, vocabulary]."""
        if self._on_cpu:
            return torch.from_numpy(logits.numpy()[rows])
        return logits[torch.tensor(rows, device=logits.device)]

    def _largest(self, logits: Tensor) -> list[int | None]:
        """The first largest logit of each row; None where it is not finite (NaN counts as the largest)."""
        if self._on_cpu:  # numpy's argmax is vectorised where torch's is not: 50 against 400 us for 16 x 49152
            array = logits.numpy()
            tokens = array.argmax(axis=1)
            values = array[np.arange(len(tokens)), tokens].tolist()
            indices: list[int] = tokens.tolist()
        else:
            largest = logits.max(dim=1)
            values, indices = largest.values.tolist(), largest.indices.tolist()
        return [token if math.isfinite(value) else None for token, value in zip(indices, values, strict=True)]

    def _sample_block(self, block: Tensor, tasks: list[SampleTask]) -> list[Sampled]:
        """Edits block [rows, vocabulary] in place and chooses."""
        for row, task in zip(block, tasks, strict=True):
            if needs_edits(task):
                edit(row, task)
        tokens = self._largest(block)
        random = [row for row, task in enumerate(tasks) if tokens[row] is not None and not task.sampling.greedy]
        if random:
            drawn = _draw(
                block[random] if len(random) < len(tasks) else block, [tasks[row] for row in random], self._on_cpu
            )
            for row, token in zip(random, drawn, strict=True):
                tokens[row] = token
        return [
            Sampled(token)
            if token is None or task.sampling.logprobs is None
            else _with_logprobs(row, token, task.sampling.logprobs)
            for row, token, task in zip(block, tokens, tasks, strict=True)
        ]


def _plain(task: SampleTask) -> bool:
    """Whether the largest logit is the whole answer."""
    sampling = task.sampling
    return sampling.temperature == 0.0 and sampling.logprobs is None and not needs_edits(task)


def _with_logprobs(row: Tensor, token: int, count: int) -> Sampled:
    """The choice with its logprob and those of the `count` likeliest possible tokens, equal ones by id."""
    logprobs = torch.log_softmax(row, dim=0)
    chosen = float(logprobs[token])
    if count == 0:
        return Sampled(token, chosen)
    edge = logprobs.topk(min(count, len(logprobs))).values[-1]
    ids = (logprobs >= edge).nonzero().flatten()
    order = logprobs[ids].sort(descending=True, stable=True)
    pairs = zip(ids[order.indices].tolist(), order.values.tolist(), strict=True)
    top = tuple((other, value) for other, value in pairs if value > -math.inf)[:count]
    return Sampled(token, chosen, top)


def _weights_here(block: Tensor, temperatures: list[float]) -> np.ndarray:
    """Fixed point probabilities relative to each row's likeliest: [rows, vocabulary] int64 up to 2**40.

    In numpy: one thread does a row as fast as torch's two, which would have to meet after each of seven operations.
    """
    exact = block.numpy().astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    exact /= np.array(temperatures)[:, None]
    np.exp(exact, out=exact)
    exact *= float(1 << _UNIT_BITS)
    return exact.astype(np.int64)


def _weights_on_device(block: Tensor, temperatures: list[float]) -> Tensor:
    """As `_weights_here`, where the block lies."""
    exact = block.double()
    exact -= exact.amax(dim=1, keepdim=True)
    exact /= torch.tensor(temperatures, dtype=torch.float64, device=block.device).unsqueeze(1)
    return exact.exp_().mul_(float(1 << _UNIT_BITS)).to(torch.int64)


def _above(weights: np.ndarray | Tensor, rows: list[int], cut: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights that reach the cut: index in `rows`, token id and weight of each, in order of row, then id."""
    part = weights[rows] if len(rows) < len(weights) else weights
    if isinstance(part, np.ndarray):
        places, ids = (part >= cut).nonzero()
        return places, ids, part[places, ids]
    places, ids = (part >= cut).nonzero(as_tuple=True)
    return places.cpu().numpy(), ids.cpu().numpy(), part[places, ids].cpu().numpy()


def _draw(block: Tensor, tasks: list[SampleTask], on_cpu: bool) -> list[int]:
    """One drawn token per row of block [rows, vocabulary], each row with a finite largest logit."""
    weigh = _weights_here if on_cpu else _weights_on_device
    weights = weigh(block, [task.sampling.temperature for task in tasks])
    totals: list[int] = weights.sum(1).tolist()
    tokens: dict[int, int] = {}
    for cut in _CUTS:
        pending = [row for row in range(len(tasks)) if row not in tokens]
        if not pending:
            break
        places, ids, kept = _above(weights, pending, cut)
        starts = np.searchsorted(places, np.arange(len(pending) + 1))
        for place, row in enumerate(pending):
            span = slice(starts[place], starts[place + 1])
            task = tasks[row]
            number = uniform64(task.sampling.seed, len(task.output))
            candidates = _Candidates(ids[span], kept[span], totals[row], complete=cut == 1)
            token = _walk(candidates, task.sampling, number)
            if token is not None:
                tokens[row] = token
    return [tokens[row] for row in range(len(tasks))]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The likeliest tokens of a row: `ids` ascend and hold every token whose weight reaches some cut.

    `total` is the mass of the whole row; `complete` says that no token below the cut has a weight at all.
    """

    ids: np.ndarray
    weights: np.ndarray
    total: int
    complete: bool


def _walk(candidates: _Candidates, sampling: Sampling, number: int) -> int | None:
    """Filters and draws among a row's likeliest tokens; None where the answer may lie below their cut."""
    order = np.argsort(-candidates.weights, kind="stable")
    weights = candidates.weights[order]
    masses = weights.cumsum()
    count, mass = len(order), candidates.total
    closed = candidates.complete  # nothing below the cut can belong to the kept set
    if sampling.top_k is not None:
        closed = closed or sampling.top_k <= count
        if not closed:
            return None
        count = min(count, sampling.top_k)
        mass = int(masses[count - 1])
    if sampling.top_p < 1.0:
        reach = int(masses[:count].searchsorted(math.ceil(sampling.top_p * mass)))
        if reach == count and not closed:
            return None
        count, closed = min(count, reach + 1), True
        mass = int(masses[count - 1])
    if sampling.min_p > 0.0:
        likely = int((weights[:count] >= sampling.min_p * float(weights[0])).sum())
        if likely == count and not closed:
            return None
        count = likely
        mass = int(masses[count - 1])
    place = int(masses[:count].searchsorted((number * mass) >> 64, side="right"))
    return int(candidates.ids[order[place]]) if place < count else None
