"""Predicted times beside published ones, and what they depend on."""

from __future__ import annotations

import pytest

from backend.planner.links import link_of
from backend.planner.model_facts import ModelFacts
from backend.planner.shares import of_rank, share_out
from backend.planner.speed import token_seconds
from tests.fakes.machines import dgx_h100, pcie_3090
from tests.fakes.models import LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, dense

LLAMA2_7B = dense(32, 4096, 32, 32, 11008, 32_000)
H100, A100 = 3352.0, 2039.0


def tokens_a_second(facts: ModelFacts, ranks: int, speed: float, element: int = 2, experts: str = "tensor") -> float:
    shares = share_out(facts, [1.0] * ranks, "expert" if experts == "expert" else "tensor")
    parts = [of_rank(facts, shares, rank) for rank in range(ranks)]
    link = link_of(dgx_h100(ranks), range(ranks)) if ranks > 1 else None
    return 1 / token_seconds(parts, [speed] * ranks, element, link, facts.hidden)


@pytest.mark.parametrize(
    ("facts", "ranks", "speed", "element", "published"),
    # SGLang on H100; gpt-fast on A100: 7B in bfloat16 on one and four, 70B in int8 on eight.
    [
        (LLAMA_8B, 1, H100, 2, 158.0),
        (LLAMA2_7B, 1, A100, 2, 104.9),
        (LLAMA2_7B, 4, A100, 2, 254.0),
        (LLAMA_70B, 8, A100, 1, 80.4),
    ],
)
def test_one_answers_speed_is_near_the_published(
    facts: ModelFacts, ranks: int, speed: float, element: int, published: float
) -> None:
    assert tokens_a_second(facts, ranks, speed, element) == pytest.approx(published, rel=0.35)


def test_a_mixture_reads_its_active_experts() -> None:
    dense_too = LLAMA_8B.parameters / QWEN3_30B_A3B.parameters  # if all of it were read
    ratio = tokens_a_second(QWEN3_30B_A3B, 1, H100) / tokens_a_second(LLAMA_8B, 1, H100)
    assert 1.5 < ratio < 4
    assert ratio > 5 * dense_too


def test_ranks_wait_for_the_one_with_most_heads() -> None:
    assert tokens_a_second(LLAMA_70B, 8, H100) > 1.1 * tokens_a_second(LLAMA_70B, 7, H100)


def test_a_slow_link_costs_prompts_too() -> None:
    shares = share_out(LLAMA_8B, [1.0] * 3, "tensor")
    parts = [of_rank(LLAMA_8B, shares, rank) for rank in range(3)]
    times = [
        token_seconds(parts, [936.0] * 3, 2, link_of(pcie_3090(3, peer), range(3)), LLAMA_8B.hidden)
        for peer in (True, False)
    ]
    assert times[0] < times[1]
