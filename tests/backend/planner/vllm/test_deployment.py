"""What versions of vLLM take by default, and how they divide layers over stages."""

from __future__ import annotations

import pytest

from backend.library.model_table import known_from_catalogue
from backend.planner.vllm.allocator import rounding
from backend.planner.vllm.deployment import default_deployment
from backend.planner.vllm.stages import stage_ranges

_GIB, _MIB = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("version", "gpu", "gib", "sequences", "tokens", "utilization"),
    [
        ((0, 19, 0), "NVIDIA H100 80GB HBM3", 79.19, 1024, 8192, 0.9),
        ((0, 22, 0), "NVIDIA H200", 139.8, 1024, 8192, 0.92),
        ((0, 19, 0), "NVIDIA A100-SXM4-80GB", 79.15, 256, 2048, 0.9),
        ((0, 19, 0), "NVIDIA GeForce RTX 4090", 23.55, 256, 2048, 0.9),
        ((0, 7, 3), "NVIDIA H100 80GB HBM3", 79.19, 256, 8192, 0.9),
    ],
)
def test_defaults(
    version: tuple[int, ...], gpu: str, gib: float, sequences: int, tokens: int, utilization: float
) -> None:
    model = known_from_catalogue("meta-llama/Meta-Llama-3-8B")
    assert model is not None
    given = default_deployment(model, gpu=gpu, memory=int(gib * _GIB), version=version)
    assert (given.max_num_seqs, given.max_num_batched_tokens, given.utilization) == (sequences, tokens, utilization)
    assert given.max_model_len == 8192


def test_the_first_engine_divides_long_prompts_alone() -> None:
    model = known_from_catalogue("meta-llama/Meta-Llama-3.1-8B")
    assert model is not None
    steps = [
        default_deployment(model, gpu="RTX 3090", memory=24 * _GIB, version=version, max_model_len=length)
        for version, length in (((0, 6, 4), 29000), ((0, 6, 4), 35000), ((0, 7, 0), 35000), ((0, 5, 3), 35000))
    ]
    assert [step.max_num_batched_tokens for step in steps] == [29000, 512, 2048, 35000]
    assert [step.chunked_prefill for step in steps] == [False, True, True, False]


def test_no_more_sequences_than_tokens_of_a_step() -> None:
    model = known_from_catalogue("meta-llama/Meta-Llama-3.1-8B")
    assert model is not None
    given = default_deployment(model, gpu="H100", memory=80 * _GIB, max_num_batched_tokens=64)
    assert given.max_num_seqs == 64


def test_layers_left_over_go_to_the_stages_before_the_last() -> None:
    assert [len(stage) for stage in stage_ranges(61, 4)] == [15, 15, 16, 15]
    assert [len(stage) for stage in stage_ranges(62, 4)] == [15, 16, 16, 15]
    assert [len(stage) for stage in stage_ranges(7, 2)] == [4, 3]


def test_what_torch_rounds_up() -> None:
    assert [rounding(int(mib * _MIB)) for mib in (9.5, 259, 129.5, 24.5, 260)] == [0, _MIB, _MIB // 2, 0, 0]
