"""Fused experts of mixture models: all tokens of an expert in one product, as an implementation for transformers.

How a module was cut for a rank is `expert_shares`'; the kernels for GPUs are quant's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

from backend.surgery.expert_shares import ExpertShare, activate, norms_pairs
from backend.surgery.fused_experts import fused_experts

if TYPE_CHECKING:
    from quant.triton.experts import FusedExperts

EXPERTS = "shardwise"


def register() -> None:
    """Makes EXPERTS known to transformers."""
    ExpertsInterface.register(EXPERTS, run_experts)


def run_experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The weighted sum [T, hidden] of each token's experts; top_k_index and top_k_weights are [T, k].

    Choices are numbered among all experts and equal on all ranks; what lies elsewhere, and an index past the last,
    adds nothing here, and the sum over ranks is one all-reduce. On a GPU nothing waits for the host. On the CPU a loop
    over the experts that have tokens is faster, and reads no other expert's weights; experts stored one by one
    (`store`) have no other way. Without data only the shape counts.
    """
    if hidden_states.is_meta:
        return torch.empty_like(hidden_states)
    share = share_of(experts)
    apart = hasattr(experts, "stored_experts")
    fused = None if apart else fused_experts(experts, share, hidden_states)
    if fused is not None:
        out = _fused(experts, share, fused, hidden_states, top_k_index, top_k_weights)
    elif apart or hidden_states.device.type == "cpu" or _norm_before_sum(experts, share):
        out = _loop(experts, share, hidden_states, top_k_index, top_k_weights)
    else:
        out = _grouped(experts, share, hidden_states, top_k_index, top_k_weights)
    if share.reduce is not None and not _norm_before_sum(experts, share):
        share.reduce(out)
    return out


def share_of(experts: Any) -> ExpertShare:
    """The module's share; all experts where it was not divided."""
    share: ExpertShare | None = getattr(experts, "share", None)
    if share is not None:
        return share
    stored = getattr(experts, "stored_experts", None)
    total = experts.down_proj.shape[0] if stored is None else stored["down_proj"].count
    return ExpertShare(0, total, total)


def _norm_before_sum(experts: Any, share: ExpertShare) -> bool:
    """Whether a norm over an expert's whole output asks for the sum over ranks of every pair, instead of every token.

    (k times as many numbers as otherwise; the norm of a part would be wrong.)
    """
    return norms_pairs(experts) and not share.whole


def _loop(experts: Any, share: ExpertShare, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    tokens, active = index.shape
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)  # [T * k], pairs by expert
    counts = torch.bincount(flat, minlength=share.total).tolist()
    outputs = hidden_states.new_zeros(tokens * active, hidden_states.shape[1])
    start = sum(counts[: share.first])
    for expert, count in enumerate(counts[share.first : share.first + share.count]):
        if count:
            pairs = order[start : start + count]
            outputs[pairs] = _one_expert(experts, share, expert, hidden_states[pairs // active])
            start += count
    return _weighted_sum(experts, share, outputs, index, weights)


def _fused(
    experts: Any, share: ExpertShare, fused: FusedExperts, hidden_states: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    if not norms_pairs(experts):
        return fused(hidden_states, index, weights)
    return _weighted_sum(experts, share, fused.pairs(hidden_states, index), index, weights)


def _weighted_sum(experts: Any, share: ExpertShare, outputs: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """outputs: [T * k, hidden], zeros for what lies elsewhere. Summed in the order of the token's own choices, so that
    other tokens of the batch do not matter."""
    if norms_pairs(experts):
        if _norm_before_sum(experts, share) and share.reduce is not None:
            share.reduce(outputs)
        outputs = experts.post_expert_norm(outputs)
    here = (index >= share.first) & (index < share.first + share.count)
    weights = torch.where(here, weights, 0)
    weighted = outputs.view(*weights.shape, outputs.shape[1]) * weights[:, :, None]
    return weighted.sum(1).to(outputs.dtype)


def _one_expert(experts: Any, share: ExpertShare, expert: int, x: Tensor) -> Tensor:
    """One expert's MLP over its tokens [n, hidden]; `expert` counts from the first that lies here."""
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    inner = activate(experts, _multiply(experts, up, expert, x))
    return _multiply(experts, "down_proj", expert, inner, biased=share.biased)


def _multiply(experts: Any, name: str, expert: int, x: Tensor, *, biased: bool = True) -> Tensor:
    """The one place where an expert's weight is multiplied on a processor."""
    if hasattr(experts, "stored_experts"):
        return experts.stored_experts[name].multiply(expert, x)
    weight = getattr(experts, name)[expert]
    product = x @ (weight if experts.is_transposed else weight.T)
    return product + getattr(experts, f"{name}_bias")[expert] if experts.has_bias and biased else product


def _grouped(experts: Any, share: ExpertShare, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """transformers' grouped product over the experts that lie here."""
    # To transformers, a choice past the last expert is one that another rank computes.
    experts.num_experts, experts._is_expert_parallel = share.count, share.count < share.total
    here = (index >= share.first) & (index < share.first + share.count)
    local = torch.where(here, index - share.first, share.count)
    weights = torch.where(here, weights, 0)
    out = grouped_mm_experts_forward(experts, hidden_states, local, weights)
    if experts.has_bias and not share.biased:
        bias = experts.down_proj_bias[local.clamp(max=share.count - 1)]
        out -= (bias * weights[:, :, None]).sum(1).to(out.dtype)
    return out
