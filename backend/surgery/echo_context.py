"""EchoContext: an AttentionContext for probes, which compare two ways through a layer without any pages."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class EchoContext:
    """Notes the last call, and answers with something that depends on all of its tensors; K and V of one size.

    Raises ValueError for latents, whose values are a part of the key that an echo is not told.
    """

    tensors: tuple[Tensor, ...] = ()
    scaling: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def attend(
        self,
        slot: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        if value is None:
            raise ValueError("an echo has no answer for latents")
        self.tensors, self.scaling, self.softcap, self.sinks = (query, key, value), scaling, softcap, sinks
        return query * 0.5 + (key + value).repeat_interleave(query.shape[1] // value.shape[1], 1)
