"""What each rank gets of a model, in numbers."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import SettingError
from backend.parallel.division import divide_heads
from backend.planner.shares import check_ranks, choose_experts, of_rank, share_out, touched
from kvcache.layout import Keeps, LayerCache
from tests.fakes.models import LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, STARTER, dense

MODELS = {"8b": LLAMA_8B, "70b": LLAMA_70B, "30b-a3b": QWEN3_30B_A3B}
# Latents are one for all heads, of which each rank has some.
LATENT = dataclasses.replace(
    dense(4, 2048, 16, 16, 4096, 32_000), layers=(LayerCache(Keeps.LATENT, None, 1, 576, 512),) * 4,
    key_parameters=(0,) * 4,
)  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_mlps_make_up_for_kv_heads_that_do_not_divide(name: str, ranks: int) -> None:
    facts = MODELS[name]
    shares = share_out(facts, [1.0] * ranks, "tensor")
    work = [touched(of_rank(facts, shares, rank), 16) for rank in range(ranks)]
    # Columns go in blocks of 64, of which an expert of 768 has so few that five or seven ranks get unlike counts.
    assert max(work) < (1.45 if facts.experts else 1.04) * sum(work) / ranks
    heads = [len(share.heads) for share in divide_heads(facts.heads[0], facts.layers[0].kv_heads, shares.attention)]
    assert sum(heads) == facts.heads[0]
    if len(set(heads)) > 1:
        fewest = heads.index(min(heads))
        assert shares.mlp[fewest] == max(shares.mlp)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (3.0, 1.0, 2.0), (1.0, 1.0, 1.0, 2.5)])
def test_work_follows_the_weights(weights: tuple[float, ...]) -> None:
    shares = share_out(LLAMA_70B, weights, "tensor")
    work = [touched(of_rank(LLAMA_70B, shares, rank), 16) for rank in range(len(weights))]
    for done, weight in zip(work, weights, strict=True):
        assert done / sum(work) == pytest.approx(weight / sum(weights), rel=0.03)


@given(st.sampled_from(sorted(MODELS)), st.lists(st.floats(0.3, 3.0), min_size=1, max_size=8))
def test_nothing_is_lost_and_only_what_is_replicated_is_held_twice(name: str, weights: list[float]) -> None:
    facts = MODELS[name]
    shares = share_out(facts, weights, "expert" if facts.experts else "tensor")
    parts = [of_rank(facts, shares, rank) for rank in range(len(weights))]
    ranks = len(weights)
    assert sum(part.parameters for part in parts) == pytest.approx(
        facts.parameters + (ranks - 1) * facts.replicated_parameters
        + sum(sum(part.key_parameters) for part in parts) - sum(facts.key_parameters),
        abs=len(facts.layers) * 4 * ranks,
    )  # fmt: skip
    assert sum(part.heads[0] for part in parts) == facts.heads[0]
    assert sum(part.layers[0].kv_heads for part in parts) == max(facts.layers[0].kv_heads, ranks)
    assert sum(part.vocabulary_parameters for part in parts) <= facts.vocabulary_parameters
    for part in parts:
        assert part.replicated_parameters == facts.replicated_parameters
        assert (part.vocabulary, part.hidden) == (facts.vocabulary, facts.hidden)


def test_one_rank_has_the_whole_model() -> None:
    for facts in (*MODELS.values(), STARTER, LATENT):
        assert of_rank(facts, share_out(facts, [1.0], "tensor"), 0) == facts


def test_a_kv_head_of_several_ranks_is_held_by_each() -> None:
    facts = dense(2, 1024, 16, 2, 2048, 1024)
    shares = share_out(facts, [1.0] * 4, "tensor")
    parts = [of_rank(facts, shares, rank) for rank in range(4)]
    assert [part.layers[0].kv_heads for part in parts] == [1, 1, 1, 1]
    assert [part.key_parameters[0] for part in parts] == [facts.key_parameters[0] // 2] * 4


def test_every_rank_keeps_the_latents() -> None:
    shares = share_out(LATENT, [1.0] * 3, "tensor")
    parts = [of_rank(LATENT, shares, rank) for rank in range(3)]
    assert {part.layers for part in parts} == {LATENT.layers}
    assert [part.heads[0] for part in parts] == [6, 5, 5]


def test_whole_experts_go_to_ranks_that_do_not_divide_them() -> None:
    shares = share_out(QWEN3_30B_A3B, [1.0] * 3, "expert")
    counts = [of_rank(QWEN3_30B_A3B, shares, rank).experts[0].count for rank in range(3)]
    assert sum(counts) == 128
    assert max(counts) - min(counts) <= 3
    widths = {of_rank(QWEN3_30B_A3B, shares, rank).experts[0].width for rank in range(3)}
    assert widths == {768}


def test_experts_are_sliced_while_slices_are_wide() -> None:
    assert choose_experts("auto", QWEN3_30B_A3B, 4)[0] == "tensor"
    division, reason = choose_experts("auto", QWEN3_30B_A3B, 8)
    assert division == "expert"
    assert "96 columns" in reason
    assert choose_experts("auto", LLAMA_8B, 8) == ("tensor", "")
    assert choose_experts("tensor", QWEN3_30B_A3B, 8)[0] == "tensor"


def test_experts_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(SettingError, match="needs a model with experts"):
        choose_experts("expert", LLAMA_8B, 2)
    few = dataclasses.replace(QWEN3_30B_A3B, experts=(dataclasses.replace(QWEN3_30B_A3B.experts[0], count=3),))
    with pytest.raises(SettingError, match="cannot give each of 4 ranks") as refused:
        choose_experts("expert", few, 4)
    assert "--tp 3" in refused.value.hint


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 6, 7, 8, 9])
def test_the_starter_is_divided_over_as_many_ranks_as_it_has_query_heads(ranks: int) -> None:
    check_ranks(STARTER, ranks)
    shares = share_out(STARTER, [1.0] * ranks, "tensor")
    assert all(of_rank(STARTER, shares, rank).heads[0] >= 1 for rank in range(ranks))


def test_more_ranks_than_heads_or_columns_are_refused_with_what_would_do() -> None:
    with pytest.raises(SettingError, match="--tp 10 is more than the model has query heads") as refused:
        check_ranks(STARTER, 10)
    assert "--tp 9" in refused.value.hint
    narrow = dense(2, 64, 8, 4, 3, 64, size=8)
    with pytest.raises(SettingError, match="--tp 4 cannot divide this model") as refused:
        check_ranks(narrow, 4)
    assert refused.value.hint == "Use --tp 3."
