"""Experts divided over ranks sum to the whole module's own forward, whichever way they are divided."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.errors import SettingError, UnsupportedModelError
from backend.parallel.division import Division, ExpertDivision
from backend.surgery.expert_shares import are_experts, gate_columns, narrow_experts
from backend.surgery.experts import _grouped, run_experts, share_of
from tests.fakes.thread_group import ThreadGroup, on_ranks, thread_groups
from tests.fakes.tiny_experts import KINDS, routing, tiny_experts

Forward = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def cut(experts: Any, division: Division, group: ThreadGroup) -> Any:
    """One rank's module: parameters cut as `narrow_experts` says of the same module on meta."""
    slices = narrow_experts(copy.deepcopy(experts).to("meta"), division, group)
    mine = copy.deepcopy(experts)
    for name, (dim, index) in slices.kept.items():
        assert index.dtype == torch.int64
        kept = getattr(experts, name).index_select(dim, index)
        mine._parameters[name] = nn.Parameter(kept, requires_grad=False)
    mine.share = slices.share
    return mine


@torch.no_grad()
def divided(
    experts: Any, way: ExpertDivision, weights: tuple[float, ...], inputs: tuple[Tensor, ...], forward: Forward
) -> tuple[list[Tensor], list[ThreadGroup]]:
    """What every rank answers."""
    groups = thread_groups(len(weights))
    divisions = [Division(rank, weights, weights, way) for rank in range(len(weights))]
    ranks = [cut(experts, *pair) for pair in zip(divisions, groups, strict=True)]

    def run(rank: int) -> Tensor:
        with torch.no_grad():
            return forward(ranks[rank], *inputs)

    return on_ranks(groups, run), groups


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 2.5)])
@pytest.mark.parametrize("way", ["expert", "tensor"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_ranks_sums_equal_the_whole(kind: str, way: ExpertDivision, weights: tuple[float, ...]) -> None:
    """5 experts, and 100 columns of each, over 2 and 3 ranks, which divide neither."""
    experts = tiny_experts(kind, experts=5, inner=100)
    inputs = (torch.randn(11, 32, generator=torch.Generator().manual_seed(1)), *routing(11, 5, 2))
    wanted = experts(*inputs)
    answers, groups = divided(experts, way, weights, inputs, run_experts)
    for answer, group in zip(answers, groups, strict=True):
        torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-5)
        assert group.calls == 1


@pytest.mark.parametrize("way", ["expert", "tensor"])
@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss", "nemotron-h"])
@torch.no_grad()
def test_the_grouped_product_of_transformers_takes_shares(kind: str, way: ExpertDivision) -> None:
    """What a GPU falls back to; it runs on the processor, too."""
    experts = tiny_experts(kind, experts=5, inner=96)
    inputs = (torch.randn(11, 32, generator=torch.Generator().manual_seed(1)), *routing(11, 5, 2))

    def forward(mine: Any, *inputs: Tensor) -> Tensor:
        return _grouped(mine, share_of(mine), *inputs)

    answers, _ = divided(experts, way, (1.0, 1.0, 1.0), inputs, forward)
    torch.testing.assert_close(torch.stack(answers).sum(0), experts(*inputs), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_ranks_without_a_token_and_steps_without_any() -> None:
    experts = tiny_experts("qwen3-moe")
    for index in (torch.full((3, 1), 4), torch.empty(0, 2, dtype=torch.int64)):
        inputs = (torch.randn(index.shape[0], 32), index, torch.rand(index.shape))
        answers, _ = divided(experts, "expert", (1.0, 1.0), inputs, run_experts)
        for answer in answers:
            torch.testing.assert_close(answer, experts(*inputs), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_choice_past_the_last_expert_adds_nothing() -> None:
    experts = tiny_experts("mixtral")
    x, index = torch.randn(2, 32), torch.tensor([[1, 5], [5, 5]])
    found = run_experts(experts, x, index, torch.ones(2, 2))
    torch.testing.assert_close(found[:1], run_experts(experts, x[:1], index[:1, :1], torch.ones(1, 1)))
    assert not found[1].any()


def test_columns_are_found_from_the_gate() -> None:
    assert gate_columns(tiny_experts("mixtral", inner=3)).tolist() == [0, 1, 2, 0, 1, 2]
    assert gate_columns(tiny_experts("gpt-oss", inner=3)).tolist() == [0, 0, 1, 1, 2, 2]
    assert gate_columns(tiny_experts("nemotron-h", inner=3)).tolist() == [0, 1, 2]
    with torch.inference_mode():
        assert gate_columns(tiny_experts("aria", inner=2).to("meta")).tolist() == [0, 1, 0, 1]


def test_whole_experts_need_no_columns_that_can_be_told_apart() -> None:
    experts = tiny_experts("mixtral", inner=64)
    experts._apply_gate = lambda product: product.softmax(1)[:, :64]
    group = thread_groups(2)[0]
    assert narrow_experts(experts, Division(0, (1, 1), (1, 1), "expert"), group).share.count == 3
    with pytest.raises(UnsupportedModelError, match=r"MixtralExperts cannot be divided by columns.\n.*\n.*expert"):
        narrow_experts(experts, Division(0, (1, 1), (1, 1), "tensor"), group)


def test_a_gate_that_mixes_neighbours_is_refused() -> None:
    experts = tiny_experts("mixtral", inner=64)
    experts._apply_gate = lambda product: product[:, :64].cumsum(1) * product[:, 64:]
    with pytest.raises(UnsupportedModelError, match="cannot be divided by columns"):
        narrow_experts(experts, Division(0, (1, 1), (1, 1), "tensor"), thread_groups(2)[0])


def test_more_ranks_than_experts_are_refused() -> None:
    division = Division(0, (1.0,) * 6, (1.0,) * 6, "expert")
    with pytest.raises(SettingError, match="5 experts cannot be divided over 6 ranks"):
        narrow_experts(tiny_experts("mixtral"), division, thread_groups(6)[0])


def test_only_what_the_interface_computes_counts_as_experts() -> None:
    assert are_experts(tiny_experts("gpt-oss"))
    assert not are_experts(nn.Linear(2, 2))


def test_one_rank_keeps_everything_and_sums_nothing() -> None:
    experts = tiny_experts("mixtral")
    slices = narrow_experts(experts, Division(0, (1.0,), (1.0,)), thread_groups(1)[0])
    assert slices.share.reduce is None
    assert all(index.numel() == getattr(experts, name).shape[dim] for name, (dim, index) in slices.kept.items())
