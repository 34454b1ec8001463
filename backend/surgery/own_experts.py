"""Experts modules that transformers' experts interface does not compute: taken over, so that they can be divided."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery.expert_shares import are_experts
from backend.surgery.experts import run_experts, share_of


def adopt_experts(experts: Any) -> bool:
    """Gives a module of gated experts with a forward of its own what the interface's have; False for other modules.

    `gate_up_proj` and `down_proj` are [experts, …, …], and it is told each token's choices: `run_experts` computes it;
    choices past the experts with weights are the token itself (LongCat).
    """
    up, down = experts._parameters.get("gate_up_proj"), experts._parameters.get("down_proj")
    if are_experts(experts) or up is None or down is None or up.dim() != 3 or down.dim() != 3:
        return False
    transposed = up.shape[2] == 2 * down.shape[1] and up.shape[1] == down.shape[2]
    if not transposed and (up.shape[1] != 2 * down.shape[2] or up.shape[2] != down.shape[1]):
        return False
    if len(inspect.signature(type(experts).forward).parameters) != 4:
        return False
    experts.has_gate, experts.has_bias, experts.has_post_expert_norm = True, False, False
    experts.is_transposed = transposed
    if not hasattr(experts, "_apply_gate"):
        experts._apply_gate = partial(_gate, experts.act_fn)
    experts.forward = partial(_routed, experts)
    return True


def _gate(act_fn: nn.Module, product: Tensor) -> Tensor:
    gate, up = product.chunk(2, dim=-1)
    return act_fn(gate) * up


def _routed(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    share = share_of(experts)
    out = run_experts(experts, hidden_states, top_k_index, top_k_weights)
    if not hasattr(experts, "identity_expert") or hidden_states.is_meta:
        return out
    # After the sum over ranks: every rank adds the token itself.
    kept = torch.where(top_k_index >= share.total, top_k_weights, 0).sum(1)
    return out + (hidden_states * kept[:, None]).to(out.dtype)
