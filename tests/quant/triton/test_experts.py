"""The expert kernels under Triton's interpreter against the reference: layouts, gates, shares, and odd sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quant.triton.expert_gate import Gate
from quant.triton.expert_reference import experts_reference, pair_outputs_reference
from tests.fakes.expert_case import GPT_OSS, SILU, TOLERANCES, ExpertCase
from tests.fakes.interpreted import require_interpreter


def fused(case: ExpertCase) -> Any:
    require_interpreter()
    from quant.triton.experts import FusedExperts

    activate = case.gate or functional.silu
    return FusedExperts(case.matrices(), case.gate, activate, case.first, case.total, "sm_90", interpreted=True)


def wanted(case: ExpertCase, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return experts_reference(case.matrices(), case.gate or functional.silu, *inputs, case.first)


def compare(case: ExpertCase) -> None:
    inputs = case.inputs()
    tolerance = TOLERANCES[case.dtype]
    torch.testing.assert_close(fused(case)(*inputs), wanted(case, inputs), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [0, 1, 7, 70])
@pytest.mark.parametrize(("experts", "active"), [(1, 1), (3, 2), (8, 4)])
def test_tokens_experts_and_choices(tokens: int, experts: int, active: int) -> None:
    compare(ExpertCase(tokens, active, total=experts, here=experts))


@pytest.mark.parametrize(("hidden", "inner"), [(8, 8), (24, 40), (33, 70), (96, 130)])
@pytest.mark.parametrize("gate", [SILU, GPT_OSS, None])
def test_sizes_that_are_no_multiples_of_a_block(hidden: int, inner: int, gate: Gate | None) -> None:
    compare(ExpertCase(4, total=3, here=3, hidden=hidden, inner=inner, gate=gate, biased=True))


@pytest.mark.parametrize(
    "gate",
    [
        SILU,
        replace(SILU, limit=0.5),
        GPT_OSS,
        replace(GPT_OSS, interleaved=False),
        Gate("gelu"),
        Gate("gelu_tanh", interleaved=True),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gates_layouts_and_biases(gate: Gate, transposed: bool, biased: bool) -> None:
    compare(ExpertCase(4, total=2, here=2, inner=32, gate=gate, transposed=transposed, biased=biased))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gate", [SILU, GPT_OSS])
def test_types_of_models(dtype: torch.dtype, gate: Gate) -> None:
    compare(ExpertCase(gate=gate, biased=True, transposed=gate.interleaved, dtype=dtype))


@pytest.mark.parametrize(("first", "here"), [(0, 2), (2, 2), (4, 1)])
@pytest.mark.parametrize("tokens", [1, 30])
def test_experts_that_lie_elsewhere_add_nothing(first: int, here: int, tokens: int) -> None:
    case = ExpertCase(tokens, first=first, here=here)
    compare(case)
    x, index, _ = case.inputs()
    found = fused(case).pairs(x, index)
    torch.testing.assert_close(
        found, pair_outputs_reference(case.matrices(), SILU, x, index, first), rtol=1e-5, atol=1e-5
    )
    elsewhere = (index < first) | (index >= first + here)
    assert not found[elsewhere.reshape(-1)].any()


def test_a_token_s_answer_does_not_depend_on_its_batch() -> None:
    """Bit for bit in float32, over every size of block that the table chooses by load."""
    case = ExpertCase(tokens=70, active=2, total=2, here=2, hidden=70, inner=90)
    x, index, weights = case.inputs()
    run = fused(case)
    assert run.configuration(2) != run.configuration(140)
    together = run(x, index, weights)
    for token in (0, 35, 69):
        alone = slice(token, token + 1)
        assert torch.equal(run(x[alone], index[alone], weights[alone])[0], together[token])


def test_rows_that_are_not_contiguous() -> None:
    case = ExpertCase()
    x, index, weights = case.inputs()
    wide = torch.cat([x, x], dim=1)[:, :32]
    torch.testing.assert_close(fused(case)(wide, index, weights), wanted(case, (x, index, weights)))
    torch.testing.assert_close(fused(case)(x.T.contiguous().T, index, weights), wanted(case, (x, index, weights)))
