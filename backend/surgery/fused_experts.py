"""Recognises what an experts module computes between its products, and hands it to the kernels for GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from backend.surgery.expert_shares import ExpertShare, activate
from kvcache.attention.triton_card import Card, current_card
from quant.triton.expert_gate import Activation, Gate
from quant.triton.expert_reference import ExpertMatrices

if TYPE_CHECKING:
    from quant.triton.experts import FusedExperts

# The least that Triton's products and the kernels' bfloat16 ask for.
LEAST_CAPABILITY = (8, 0)
_ACTIVATIONS: tuple[Activation, ...] = ("swish", "gelu", "gelu_tanh")


def fused_experts(experts: Any, share: ExpertShare, x: Tensor) -> FusedExperts | None:
    """The kernels' view of a module as its weights lie now, for inputs like x; None where they do not serve it."""
    return _fuse(experts, share, x, _card()) if x.is_cuda and _triton() else None


def _fuse(experts: Any, share: ExpertShare, x: Tensor, card: Card) -> FusedExperts | None:
    from quant.triton.experts import FusedExperts, serves

    matrices = _matrices(experts, share)
    if card.capability < LEAST_CAPABILITY or not serves(x.dtype, matrices):
        return None
    if not hasattr(experts, "recognised_gate"):
        # At the first step of each layer. The weights are looked up at every step: they may have been moved.
        experts.recognised_gate = recognise_gate(experts)
    return FusedExperts(
        matrices, experts.recognised_gate, partial(activate, experts), share.first, share.total, card.architecture,
        card.interpreted,
    )  # fmt: skip


def recognise_gate(experts: Any) -> Gate | None:
    """The gate that gives what the module's own does, on numbers large and small; None where no gate we know does.

    Its numbers (a limit, a slope) are looked for among the module's own.
    """
    if not experts.has_gate:
        return None
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(16, 64, generator=generator, dtype=torch.float32, device="cpu")
    sample *= torch.tensor([0.1, 1.0, 10.0, 1e4]).repeat(4)[:, None]
    with torch.inference_mode():
        try:
            wanted = activate(experts, sample)
        except RuntimeError:  # parameters of its own on the device: not one of ours
            return None
        for gate in _candidates(experts):
            if torch.allclose(gate(sample), wanted, rtol=1e-5, atol=1e-6):
                return gate
    return None


def _candidates(experts: Any) -> Iterator[Gate]:
    own = [n for n in vars(experts).values() if isinstance(n, int | float) and not isinstance(n, bool)]
    numbers = dict.fromkeys(float(n) for n in own if 0 < n < float("inf"))
    slopes, limits = (1.0, *numbers), (None, *numbers)
    for activation, interleaved, limit, offset in product(_ACTIVATIONS, (False, True), limits, (0.0, 1.0)):
        for alpha in slopes if activation == "swish" else (1.0,):
            yield Gate(activation, interleaved, alpha, limit, offset)


def _matrices(experts: Any, share: ExpertShare) -> ExpertMatrices:
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    # Some have more first matrices than experts.
    up, down = getattr(experts, name)[: share.count], experts.down_proj
    if experts.is_transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    if not experts.has_bias:
        return ExpertMatrices(up, down)
    return ExpertMatrices(up, down, getattr(experts, f"{name}_bias"), experts.down_proj_bias if share.biased else None)


@cache
def _card() -> Card:
    return current_card()


@cache
def _triton() -> bool:
    return find_spec("triton") is not None
