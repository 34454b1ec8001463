"""The attention function that transformers' models call: it hands everything to the pass's AttentionContext."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from backend.surgery.context import AttentionContext

ATTENTION = "shardwise"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    context: AttentionContext,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of query [1, heads, T, D] over key [1, kv_heads, T, D] and value [1, kv_heads, T, Dv], after RoPE.

    Returns [1, T, heads, Dv] and no weights. Masks and windows are the context's business: `trace` has read them off
    the model when it was built. `module.slot` was set then, too.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = context.attend(
        module.slot,  # pyright: ignore[reportArgumentType]
        query[0].transpose(0, 1),  # [T, heads, D]
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scaling=scale,
        softcap=softcap,
        sinks=s_aux,
    )
    return out.unsqueeze(0), None


def register() -> None:
    """Makes ATTENTION known to transformers. No mask function goes by that name, so models build no masks."""
    AttentionInterface.register(ATTENTION, attend)


@torch.no_grad()
def number_slots(modules: list[nn.Module]) -> None:
    """Gives each attention module its cache slot: its place in the order of calls."""
    for slot, module in enumerate(modules):
        module.slot = slot  # pyright: ignore[reportArgumentType]
