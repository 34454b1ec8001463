"""What follows of dimensions: every row of the catalogue, and some of them against transformers' own classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from backend.library.model_table import CatalogueModel, catalogue, find_in_catalogue
from backend.planner.fit.compose import known_model_of
from backend.planner.fit.dimensions import Dimensions
from backend.planner.model_facts import ModelFacts
from backend.surgery.describe import describe
from kvcache.layout import Keeps

_ROWS = {model.id: model for model in catalogue()}


def _row_bytes(facts: ModelFacts, kinds: frozenset[Keeps]) -> int:
    """Bytes a token at two bytes an element, over all layers of the kinds."""
    rows = (layer.kv_heads * (layer.key_size + layer.stored_values) for layer in facts.layers if layer.keeps in kinds)
    return 2 * sum(rows)


@pytest.mark.parametrize("row", catalogue(), ids=lambda row: row.id)
def test_each_row_adds_up_to_what_was_counted(row: CatalogueModel) -> None:
    facts = row.known().facts
    assert facts.parameters == row.parameters
    lasting = _row_bytes(facts, frozenset({Keeps.FULL, Keeps.LATENT}))
    assert row.kv_bytes in (lasting, _row_bytes(facts, frozenset(Keeps)))
    assert len(facts.layer_parameters) == row.dimensions.layers
    assert sum(facts.layer_parameters) < facts.parameters
    assert facts.replicated_parameters > 0
    states = sum(layers.count for layers in row.known().states)
    alone = sum(row.dimensions.kinds.count(kind) for kind in "-E")
    second = sum(row.dimensions.kinds.count(kind) for kind in "lh")
    assert len(facts.layers) - second + states + alone == row.dimensions.layers


def test_linears_are_a_part_of_the_parameters() -> None:
    for row in catalogue():
        facts = row.known().facts
        inside = sum(shape.columns * (shape.depth + shape.bias) * count for shape, count in facts.linears)
        tied = row.dimensions.tie_embeddings
        assert 0.5 * facts.parameters < inside <= facts.parameters, row.id
        assert sum(count for shape, count in facts.linears if shape.kept and shape.columns == facts.vocabulary) == 1
        assert facts.vocabulary_parameters == facts.output_parameters * (1 if tied else 2) - (
            0 if tied or not row.dimensions.head_bias else facts.vocabulary
        )


# Names of transformers' config class and what its config has beside the sizes that all have.
_SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-3.2-1B": ("Llama", {}),
    "Qwen/Qwen3-0.6B": ("Qwen3", {}),
    "Qwen/Qwen2.5-0.5B": ("Qwen2", {}),
    "google/gemma-2-2b": ("Gemma2", {"sliding_window": 4096}),
    "microsoft/phi-2": ("Phi", {}),
    "CohereForAI/c4ai-command-r-v01": ("Cohere", {}),
    "openai/gpt-oss-20b": (
        "GptOss",
        {"num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "rope_parameters": None},
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        "Qwen2Moe",
        {
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        "DeepseekV2",
        {
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1408,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
}
# Kinds that are not served yet, cut to the layers that show all of what they are made of.
_OTHERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Qwen/Qwen3.5-35B-A3B": (
        "Qwen3_5MoeText",
        4,
        {
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        },
    ),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (
        "NemotronH",
        7,
        {
            "hybrid_override_pattern": "MEMEM*E",
            "mamba_num_heads": 64,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "conv_kernel": 4,
            "n_routed_experts": 128,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712,
            "n_shared_experts": 1,
        },
    ),
    "XiaomiMiMo/MiMo-V2-Flash": (
        "MiMoV2Flash",
        6,
        {
            "v_head_dim": 128,
            "swa_num_attention_heads": 64,
            "swa_num_key_value_heads": 8,
            "swa_head_dim": 192,
            "swa_v_head_dim": 128,
            "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0],
            "moe_layer_freq": [0, 1, 1, 1, 1, 1],
            "add_swa_attention_sink_bias": True,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "sliding_window": 128,
        },
    ),
    "deepseek-ai/DeepSeek-V3.2": (
        "DeepseekV32",
        4,
        {
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 3,
            "index_n_heads": 64,
            "index_head_dim": 128,
        },
    ),
}


def _config(kind: str, size: Dimensions, layers: int, more: dict[str, Any]) -> PreTrainedConfig:
    plain: dict[str, Any] = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": size.max_position,
        "tie_word_embeddings": size.tie_embeddings,
        "dtype": size.native_dtype,
        "pad_token_id": 0,
    }
    if size.head_dim is not None and size.mla is None:
        plain["head_dim"] = size.head_dim
    return getattr(transformers, f"{kind}Config")(**(plain | more))


@pytest.mark.parametrize("name", _SERVED)
def test_formulas_say_what_a_traced_model_says(name: str) -> None:
    kind, more = _SERVED[name]
    size = _ROWS[name].dimensions
    traced = describe(_config(kind, size, size.layers, more))
    ours = _ROWS[name].known().facts
    assert ours.parameters == traced.parameters
    assert set(ours.columns) == set(traced.columns)
    # How many linears lie side by side in one tensor is the class's choice; what they hold is not.
    stored = [
        sum(shape.columns * shape.depth * n for shape, n in facts.linears if not shape.kept) for facts in (ours, traced)
    ]
    assert stored[0] == stored[1]
    # Where keys have as many heads, or queries as many columns as the hidden size, tracing takes one for the other, and
    # leaves a bias to every rank.
    biases = 3 * size.hidden if size.qkv_bias else 0
    for layer in range(len(ours.heads)):
        attention = [facts.query_parameters[layer] + facts.key_parameters[layer] for facts in (ours, traced)]
        assert 0 <= attention[0] - attention[1] <= biases
    different = ("architecture", "columns", "linears", "query_parameters", "key_parameters")
    for field in ModelFacts.__dataclass_fields__:
        if field not in different:
            assert getattr(ours, field) == getattr(traced, field), field


@pytest.mark.parametrize("name", _OTHERS)
def test_formulas_count_what_transformers_builds(name: str) -> None:
    kind, layers, more = _OTHERS[name]
    size = _ROWS[name].dimensions
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(_config(kind, size, layers, more))
    cut = msgspec.structs.replace(size, layers=layers)
    assert known_model_of(name, cut).facts.parameters == sum(one.numel() for one in model.parameters())


def test_a_window_longer_than_the_context_is_none() -> None:
    size = _ROWS["microsoft/Phi-4-mini-instruct"].dimensions
    assert {layer.keeps for layer in known_model_of("", size).facts.layers} == {Keeps.FULL}
    long = msgspec.structs.replace(size, max_position=1 << 20)
    assert {layer.keeps for layer in known_model_of("", long).facts.layers} == {Keeps.SLIDING}


def test_a_state_takes_the_same_whatever_the_context() -> None:
    found = find_in_catalogue("Qwen/Qwen3.5-27B")
    assert found is not None
    (states,) = found.known().states
    # 48 layers; convolution over 10,240 channels of 4 positions, and 48 heads of 128 by 128, of 2 bytes.
    assert (states.count, states.bytes) == (48, 2 * (4 * 10_240 + 48 * 128 * 128))
    short = replace(found, dimensions=msgspec.structs.replace(found.dimensions, max_position=1024)).known()
    assert short.states == found.known().states
