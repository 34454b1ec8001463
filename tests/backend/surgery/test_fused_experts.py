"""What families compute between their products is recognised, and the kernels then compute what the loop does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.surgery.experts import _fused, share_of
from backend.surgery.fused_experts import _fuse, fused_experts, recognise_gate
from kvcache.attention.triton_card import Card
from quant.triton.expert_gate import Gate
from tests.fakes.interpreted import require_interpreter
from tests.fakes.tiny_experts import KINDS, routing, tiny_experts

INTERPRETED = Card("cpu", (9, 0), 2, interpreted=True)


def test_gates_of_the_families_are_recognised() -> None:
    oai = Gate("swish", interleaved=True, alpha=1.702, limit=1.0, offset=1.0)
    assert recognise_gate(tiny_experts("mixtral")) == Gate("swish")
    assert recognise_gate(tiny_experts("mixtral", act="gelu")) == Gate("gelu")
    assert recognise_gate(tiny_experts("mixtral", act="gelu_pytorch_tanh")) == Gate("gelu_tanh")
    assert recognise_gate(tiny_experts("gpt-oss")) == oai
    assert recognise_gate(tiny_experts("privacy-filter")) == Gate("swish", alpha=1.702, limit=1.0, offset=1.0)
    assert recognise_gate(tiny_experts("deepseek-v4")) == Gate("swish", limit=1.0)
    assert recognise_gate(tiny_experts("nemotron-h")) is None
    assert recognise_gate(tiny_experts("mixtral", act="relu")) is None


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_kernels_compute_what_the_family_does(kind: str) -> None:
    """Those whose gate is not recognised, or that norm each output, included."""
    require_interpreter()
    experts = tiny_experts(kind, act="relu" if kind == "aria" else "silu")
    inputs = (torch.randn(9, 32, generator=torch.Generator().manual_seed(1)), *routing(9, 5, 2))
    share = share_of(experts)
    fused = _fuse(experts, share, inputs[0], INTERPRETED)
    assert fused is not None
    torch.testing.assert_close(_fused(experts, share, fused, *inputs), experts(*inputs), rtol=1e-5, atol=1e-5)


def test_what_the_kernels_do_not_serve_is_left_to_others() -> None:
    require_interpreter()
    experts: Any = tiny_experts("mixtral")
    share, x = share_of(experts), torch.randn(3, 32)
    assert _fuse(experts, share, x, Card("cuda", (7, 5), 40)) is None
    assert _fuse(experts, share, x.double(), INTERPRETED) is None
    assert _fuse(experts, share, x.bfloat16(), INTERPRETED) is None  # the weights are float32
    assert fused_experts(experts, share, x) is None  # on a processor the loop computes
