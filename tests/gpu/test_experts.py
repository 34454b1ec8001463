"""The expert kernels on a CUDA device against the reference on the processor: what the interpreter cannot show.

Products in bfloat16, real block sizes at every load, and that nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from backend.surgery.expert_shares import ExpertShare
from backend.surgery.experts import run_experts
from backend.surgery.fused_experts import fused_experts
from kvcache.attention.triton_card import current_card
from quant.triton.expert_gate import Gate
from quant.triton.expert_reference import experts_reference
from tests.fakes.expert_case import GPT_OSS, SILU, ExpertCase
from tests.fakes.tiny_experts import KINDS, routing, tiny_experts

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
WIDE = ExpertCase(active=4, total=16, here=16, hidden=512, inner=320)


def compare(case: ExpertCase) -> None:
    from quant.triton.experts import FusedExperts

    activate = case.gate or functional.silu
    architecture = current_card().architecture
    run = FusedExperts(case.matrices("cuda"), case.gate, activate, case.first, case.total, architecture)
    found = run(*case.inputs("cuda")).cpu()
    wanted = experts_reference(case.matrices(), activate, *case.inputs(), case.first)
    tolerance = TOLERANCES[case.dtype]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 1, 16, 150, 300, 2000])
@pytest.mark.parametrize("gate", [SILU, GPT_OSS, Gate("gelu"), Gate("gelu_tanh", interleaved=True), None])
def test_loads_and_gates(tokens: int, gate: Gate | None, dtype: torch.dtype) -> None:
    compare(replace(WIDE, tokens=tokens, gate=gate, dtype=dtype, biased=True))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("hidden", "inner"), [(40, 24), (200, 100), (2880, 360)])
def test_odd_sizes(hidden: int, inner: int, transposed: bool) -> None:
    for tokens in (3, 400):
        for gate in (SILU, GPT_OSS):
            compare(replace(WIDE, tokens=tokens, hidden=hidden, inner=inner, gate=gate, transposed=transposed,
                            dtype=torch.bfloat16))  # fmt: skip


@pytest.mark.parametrize(("first", "here"), [(0, 5), (5, 6), (15, 1)])
def test_experts_that_lie_elsewhere(first: int, here: int) -> None:
    for tokens in (1, 500):
        compare(replace(WIDE, tokens=tokens, first=first, here=here, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_modules_of_the_families(kind: str) -> None:
    experts = tiny_experts(kind, experts=6, hidden=64, inner=96)
    inputs = (torch.randn(33, 64), *routing(33, 6, 3))
    wanted = experts(*inputs)
    on_device: Any = experts.cuda()
    inputs = tuple(part.cuda() for part in inputs)
    share = ExpertShare(0, 6, 6)
    assert fused_experts(on_device, share, inputs[0]) is not None
    torch.testing.assert_close(run_experts(on_device, *inputs).cpu(), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_step_never_waits_for_the_device() -> None:
    """torch raises on any synchronization in here; and the same step can be captured and replayed."""
    experts: Any = tiny_experts("qwen3-moe", experts=16, hidden=256, inner=128).cuda().bfloat16()
    experts.share = ExpertShare(4, 16, 24)
    index, weights = (part.cuda() for part in routing(64, 24, 4))
    x = torch.randn(64, 256, dtype=torch.bfloat16, device="cuda")
    run_experts(experts, x, index, weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        wanted = run_experts(experts, x, index, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_experts(experts, x, index, weights)
    graph.replay()
    assert torch.equal(captured, wanted)
