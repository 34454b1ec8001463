"""Experts with a forward of their own, once taken over, compute what they did, whole and divided over ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts
from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

from backend.parallel.division import Division, ExpertDivision
from backend.surgery.expert_shares import narrow_experts
from backend.surgery.own_experts import adopt_experts
from tests.fakes.thread_group import on_ranks, thread_groups
from tests.fakes.tiny_experts import routing, tiny_experts


def own_experts(kind: Any) -> Any:
    """5 experts of 100 columns; LongCat's have two more, which are the token itself."""
    config = SimpleNamespace(
        num_local_experts=5, n_routed_experts=5, zero_expert_num=2, hidden_size=32, intermediate_size=100,
        expert_ffn_hidden_size=100, moe_intermediate_size=100, hidden_act="silu",
    )  # fmt: skip
    module = kind(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 6)
    return module.requires_grad_(False)


def inputs_of(kind: Any) -> tuple[Tensor, ...]:
    x = torch.randn(15, 32, generator=torch.Generator().manual_seed(1))
    return x, *routing(15, 7 if kind is LongcatFlashExperts else 5, 3)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("way", ["expert", "tensor"])
@pytest.mark.parametrize("kind", [LongcatFlashExperts, Step3p7Experts])
@torch.no_grad()
def test_divided_they_sum_to_their_own_forward(kind: Any, way: ExpertDivision, ranks: int) -> None:
    groups, inputs = thread_groups(ranks), inputs_of(kind)
    wanted = own_experts(kind)(*inputs)

    def run(rank: int) -> Tensor:
        module = own_experts(kind)
        assert adopt_experts(module)
        slices = narrow_experts(module, Division(rank, (1.0,) * ranks, (1.0,) * ranks, way), groups[rank])
        for name, (dim, index) in slices.kept.items():
            module._parameters[name] = nn.Parameter(getattr(module, name).index_select(dim, index), requires_grad=False)
        module.share = slices.share
        with torch.no_grad():
            return module(*inputs)

    for answer in on_ranks(groups, run):
        torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-5)


def test_other_modules_are_left_alone() -> None:
    assert not adopt_experts(nn.Linear(3, 3))
    assert not adopt_experts(tiny_experts("mixtral"))
    assert not adopt_experts(own_experts(Llama4TextExperts))
    assert adopt_experts(own_experts(Step3p7Experts).to("meta"))
