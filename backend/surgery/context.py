"""AttentionContext: what the replaced attention of a model calls instead of computing attention itself."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionContext(Protocol):
    """Made by the runner for one forward pass and handed through the model as the keyword argument `context`.

    The order of `attend` calls is the order of layers; each slot is called exactly once a pass.
    """

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
        """Writes key [T, kv_heads, D] and value [T, kv_heads, Dv], attends query [T, heads, D]: [T, heads, Dv].

        A layer that keeps latents gives them as key, one head of D, and no value: this is the first Dv elements of the
        key. All are flat over the batch's sequences; masks and windows are the context's own business.
        """
        ...
