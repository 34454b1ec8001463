"""Fused experts of mixture models: all tokens of an expert in one product, as an implementation for transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

EXPERTS = "shardwise"


def register() -> None:
    """Makes EXPERTS known to transformers."""
    ExpertsInterface.register(EXPERTS, run_experts)


def run_experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The weighted sum [T, hidden] of each token's experts; top_k_index and top_k_weights are [T, k].

    On a GPU transformers' grouped product does it without asking the host. On the CPU, and over experts stored one by
    one (`store`), a loop over the experts that have tokens is faster, and reads no other expert's weights. Without data
    only the shape counts.
    """
    if hidden_states.is_meta:
        return torch.empty_like(hidden_states)
    apart = hidden_states.device.type == "cpu" or hasattr(experts, "stored_experts")
    if not apart or experts.has_post_expert_norm:
        return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    return _loop(experts, hidden_states, top_k_index, top_k_weights)


def _loop(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    active = top_k_index.shape[1]
    order = top_k_index.reshape(-1).argsort(stable=True)  # [T * k], pairs by expert
    counts = torch.bincount(top_k_index.reshape(-1), minlength=experts.num_experts).tolist()
    inputs = hidden_states[order // active]
    outputs = torch.empty_like(inputs)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            outputs[start : start + count] = _one_expert(experts, expert, inputs[start : start + count])
            start += count
    weighted = outputs * top_k_weights.reshape(-1)[order, None]
    restored = torch.empty_like(weighted)
    restored[order] = weighted
    # Summed in the order of the token's own choices, so the sum does not depend on the other tokens of the batch.
    return restored.view(-1, active, hidden_states.shape[1]).sum(1).to(hidden_states.dtype)


def _one_expert(experts: Any, expert: int, x: Tensor) -> Tensor:
    """One expert's MLP over its tokens [n, hidden]."""
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    product = _multiply(experts, up, expert, x)
    inner = experts._apply_gate(product) if experts.has_gate else experts.act_fn(product)
    return _multiply(experts, "down_proj", expert, inner)


def _multiply(experts: Any, name: str, expert: int, x: Tensor) -> Tensor:
    if hasattr(experts, "stored_experts"):
        return experts.stored_experts[name].multiply(expert, x)
    weight = getattr(experts, name)[expert]
    product = x @ (weight if experts.is_transposed else weight.T)
    return product + getattr(experts, f"{name}_bias")[expert] if experts.has_bias else product
