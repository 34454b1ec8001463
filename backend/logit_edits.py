"""What a request changes in a row of logits: bias, penalties, stop tokens. Choosing is `sampler`'s."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from backend.batch import SampleTask


def needs_edits(task: SampleTask) -> bool:
    """Whether the request asks for any edit."""
    sampling = task.sampling
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.logit_bias
        or (sampling.stop_tokens and len(task.output) < sampling.min_tokens)
    )


def edit(row: Tensor, task: SampleTask) -> None:
    """Changes row [vocabulary] float32 in place: logit bias, then penalties, then the stop tokens.

    The penalties are those of transformers and vLLM: repetition (prompt and output) divides positive and
    multiplies negative logits; presence and frequency are subtracted for tokens of the output. Counting
    reads the whole history of such a row at each step (about 50 microseconds for 2,000 tokens); rows without
    penalties never pay it.
    """
    sampling = task.sampling
    if sampling.logit_bias:
        _add_bias(row, sampling.logit_bias)
    if sampling.repetition_penalty != 1.0:
        seen = _ids(row, np.unique(np.array([*task.prompt, *task.output], dtype=np.int64)))
        values = row[seen]
        penalty = sampling.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and len(task.output):
        tokens, counts = np.unique(np.array(task.output, dtype=np.int64), return_counts=True)
        cost = sampling.presence_penalty + sampling.frequency_penalty * counts
        row[_ids(row, tokens)] -= torch.from_numpy(cost.astype(np.float32)).to(row.device)
    if len(task.output) < sampling.min_tokens:
        row[_ids(row, _inside(sampling.stop_tokens, len(row)))] = -torch.inf


def _add_bias(row: Tensor, bias: dict[int, float]) -> None:
    tokens = _inside(bias, len(row))
    values = torch.tensor([bias[token] for token in tokens.tolist()], dtype=row.dtype, device=row.device)
    row[_ids(row, tokens)] += values


def _inside(tokens: Iterable[int], vocabulary: int) -> np.ndarray:
    """The distinct ids that exist. Admission refuses stray ids; here one must not end everybody's step."""
    return np.array(sorted({token for token in tokens if 0 <= token < vocabulary}), dtype=np.int64)


def _ids(row: Tensor, tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens).to(row.device)
