"""Distance: how far one format's next-token distributions are from another's, summed over a text."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Distance:
    """Sums of a growing text; the means are those of all that was added."""

    def __init__(self) -> None:
        self._count, self._surprise, self._divergence = 0, 0.0, 0.0

    def add(self, logs: Tensor, own: Tensor, targets: Tensor) -> None:
        """logs, own: float32 log probabilities [T, vocabulary] in this format and in the model's own.

        targets: [T] int64, the tokens that came.
        """
        self._count += len(targets)
        self._surprise -= float(logs.gather(1, targets[:, None]).sum(dtype=torch.float64))
        # A token without probability in the model's own format adds nothing, whatever the other one makes of it.
        terms = torch.where(own > -torch.inf, own.exp() * (own - logs), 0.0)
        self._divergence += float(terms.sum(dtype=torch.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise in nats; infinite where that is no number."""
        mean = self._surprise / self._count
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def divergence(self) -> float:
        """Mean KL divergence from the model's own, in nats; rounding never makes it negative."""
        mean = self._divergence / self._count
        return max(0.0, mean) if math.isfinite(mean) else math.inf
