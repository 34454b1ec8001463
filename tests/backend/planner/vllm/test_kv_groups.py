"""Groups of layers: what the pool pays for, and the closed form of the longest sequence, held to a search."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.library.model_table import known_from_catalogue
from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.deployment import VllmDeployment, default_deployment
from backend.planner.vllm.kv_groups import KvGroups, kv_groups

_GIB = 1 << 30


def _groups(name: str, **options: object) -> KvGroups:
    model = _model(name)
    return kv_groups(model, _deployment(model, **options))


def _model(name: str) -> KnownModel:
    model = known_from_catalogue(name)
    assert model is not None
    return model


def _deployment(model: KnownModel, **options: object) -> VllmDeployment:
    usual = default_deployment(model, gpu="H100", memory=80 * _GIB, version=(0, 19, 0))
    return replace(usual, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "billed", "size"),
    [
        ("google/gemma-3-27b-it", 70, 10),
        ("google/gemma-3-4b-it", 35, 5),
        ("google/gemma-2-2b", 26, 13),
        ("openai/gpt-oss-20b", 24, 12),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 48, 12),
        ("meta-llama/Meta-Llama-3.1-8B", 32, 32),
        ("mistralai/Mistral-7B-v0.1", 32, 32),
        ("Qwen/Qwen3.5-35B-A3B", 40, 10),
    ],
)
def test_layers_that_the_pool_pays_for(name: str, billed: int, size: int) -> None:
    groups = _groups(name)
    assert (groups.layers_billed, groups.size) == (billed, size)


def test_kinds_of_nearly_equal_counts_are_filled_up_to_the_larger() -> None:
    groups = _groups("google/gemma-2-2b")
    kinds = tuple(replace(kind, layers=layers) for kind, layers in zip(groups.kinds, (13, 12), strict=True))
    assert [kind.layers for kind in kinds] == [13, 12]
    model = _model("google/gemma-2-2b")
    facts = replace(model.facts, layers=model.facts.layers[:-1], heads=model.facts.heads[:-1])
    assert kv_groups(replace(model, facts=facts), _deployment(model)).layers_billed == 26


def test_the_first_engine_keeps_windows_whole() -> None:
    assert _groups("google/gemma-3-27b-it", version=(0, 8, 0), v1=False).layers_billed == 62


def test_ranks_past_the_kv_heads_copy_them() -> None:
    row = [_groups("meta-llama/Meta-Llama-3.1-8B", tp=tp).kinds[0].token_bytes for tp in (1, 4, 8, 16, 32)]
    assert row == [4096, 1024, 512, 512, 512]


def test_latents_are_on_every_rank_and_were_filled_up_in_the_first_engine() -> None:
    name = "deepseek-ai/DeepSeek-V3"
    assert {_groups(name, tp=tp).kinds[0].token_bytes for tp in (1, 8)} == {2 * 576}
    assert _groups(name, tp=8, version=(0, 7, 3), v1=False).kinds[0].token_bytes == 2 * 640
    decompressed = _groups(name, tp=8, version=(0, 6, 0), v1=False)
    assert decompressed.kinds[0].token_bytes == 2 * 16 * 256 * 2


def test_a_block_of_attention_is_no_smaller_than_a_state() -> None:
    groups = _groups("Qwen/Qwen3.5-27B")
    (attention,) = (kind for kind in groups.kinds if not kind.state)
    (state,) = (kind for kind in groups.kinds if kind.state)
    assert groups.block_tokens % 16 == 0
    assert groups.block_bytes == groups.block_tokens * attention.token_bytes >= state.token_bytes
    assert groups.block_bytes - 16 * attention.token_bytes < state.token_bytes


def test_layers_that_take_less_have_more_tokens_in_a_block() -> None:
    groups = _groups("google/gemma-4-31B-it", version=(0, 22, 0))
    assert sorted(kind.block_tokens for kind in groups.kinds) == [16, 32]
    # A log of such a model: 64.68 GiB and 262,144 positions, 2.39 at once.
    blocks = groups.blocks(int(64.68 * _GIB), 0)
    assert round(blocks / groups.blocks_of(262144, 8192) * 262144, -3) == 627_000


@pytest.mark.parametrize("name", ["google/gemma-3-27b-it", "mistralai/Mistral-7B-v0.1", "Qwen/Qwen3.5-27B"])
def test_the_longest_sequence_is_the_one_that_a_search_finds(name: str) -> None:
    groups, limit, steps = _groups(name), 4096, 512
    for blocks in range(0, groups.blocks_of(limit, steps) + 3, 7):
        fitting = [length for length in range(1, limit + 1) if groups.blocks_of(length, steps) <= blocks]
        assert groups.largest(blocks, limit, steps) == max(fitting, default=0)
