"""What describe finds in a config, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from backend.errors import UnsupportedModelError
from backend.planner.model_facts import Columns, ExpertColumns
from backend.surgery.describe import describe
from kvcache.layout import Keeps, LayerCache, build_layout
from tests.fakes.tiny_models import FAMILIES, WINDOW

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def test_sizes_heads_and_windows_of_a_mixed_model() -> None:
    facts = describe(FAMILIES["gemma2"]())
    sliding = LayerCache(Keeps.SLIDING, WINDOW, kv_heads=2, key_size=16, value_size=16)
    assert facts.architecture == "Gemma2ForCausalLM"
    assert facts.layers == (sliding, LayerCache(Keeps.FULL, None, 2, 16, 16), sliding)
    assert facts.heads == (4, 4, 4)
    assert (facts.hidden, facts.intermediate, facts.vocabulary, facts.max_positions) == (64, 96, 128, 256)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mixtral", "gemma2"])
def test_parameters_are_counted_as_stored(family: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
    assert describe(FAMILIES[family]()).parameters == model.num_parameters()


def test_latent_attention_keeps_a_latent_and_a_rotated_key_for_all_heads() -> None:
    facts = describe(FAMILIES["deepseek-v3"]())
    assert set(facts.layers) == {LayerCache(Keeps.LATENT, None, kv_heads=1, key_size=16 + 8, value_size=16)}
    assert set(facts.heads) == {4}


def test_deepseek_v3_keeps_576_values_a_token_and_layer() -> None:
    facts = describe(transformers.DeepseekV3Config())
    layout = build_layout(facts.layers, model_bytes=2)
    assert layout.bytes_per_token == 61 * 576 * 2
    assert set(facts.heads) == {128}


def test_a_window_as_wide_as_the_positions_is_kept_as_one() -> None:
    config = transformers.MistralConfig(**SMALL, num_key_value_heads=1, max_position_embeddings=64, sliding_window=64)
    assert {layer.window for layer in describe(config).layers} == {64}


def test_layers_that_see_their_own_chunk_and_layers_that_see_all() -> None:
    chunked = LayerCache(Keeps.CHUNKED, WINDOW, kv_heads=2, key_size=16, value_size=16)
    assert describe(FAMILIES["llama4"]()).layers == (chunked, LayerCache(Keeps.FULL, None, 2, 16, 16), chunked)


def test_the_native_dtype_is_the_config_s() -> None:
    config = FAMILIES["llama"]()
    config.dtype = torch.bfloat16
    assert describe(config).native_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4), "recurrent state"),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.BertConfig(**SMALL), "both directions"),
        (transformers.DeepseekV4Config(), "compressed keys"),
        (transformers.ViTConfig(), "no causal language model"),
    ],
    ids=["mamba", "t5", "bert", "deepseek-v4", "vit"],
)
def test_models_we_would_get_wrong_are_refused_by_name(config: transformers.PreTrainedConfig, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        describe(config)
    assert config.model_type in caught.value.what


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_parameters_but_few_are_divided_by_something(family: str) -> None:
    facts = describe(FAMILIES[family]())
    assert len(facts.query_parameters) == len(facts.key_parameters) == len(facts.layers)
    assert 0 < facts.replicated_parameters < 0.1 * facts.parameters
    assert sum(part.parameters for part in (*facts.columns, *facts.experts)) > 0.2 * facts.parameters


def test_what_heads_columns_and_the_vocabulary_divide_is_counted() -> None:
    facts = describe(FAMILIES["llama"]())  # hidden 64, 4 and 2 heads of 16, MLPs of 96, 128 words, 3 layers
    assert facts.query_parameters == (2 * 64 * 64,) * 3
    assert facts.key_parameters == (2 * 64 * 32,) * 3
    assert facts.columns == (Columns(96, 3 * 3 * 64 * 96),)
    assert (facts.vocabulary_parameters, facts.output_parameters) == (2 * 128 * 64, 128 * 64)
    tied = describe(FAMILIES["llama-tied"]())
    assert tied.vocabulary_parameters == tied.output_parameters == 128 * 64
    assert facts.replicated_parameters == 7 * 64
    assert (facts.experts, facts.active_experts) == ((), 0)


def test_experts_and_what_shares_their_layers_are_counted_apart() -> None:
    facts = describe(FAMILIES["glm4-moe"]())
    assert facts.experts == (ExpertColumns(4, 32, 2 * 4 * 3 * 64 * 32),)
    assert facts.active_experts == 2
    assert {part.width for part in facts.columns} == {96, 32}


def test_latents_are_every_ranks_and_what_is_made_of_them_is_the_heads() -> None:
    facts = describe(FAMILIES["deepseek-v3"]())
    assert set(facts.key_parameters) == {0}
    config = FAMILIES["deepseek-v3"]()
    down = config.hidden_size * (config.q_lora_rank + config.kv_lora_rank + config.qk_rope_head_dim)
    assert facts.replicated_parameters > len(facts.layers) * down
    size = config.qk_nope_head_dim + config.qk_rope_head_dim
    made = config.q_lora_rank * size + config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)
    out = config.v_head_dim * config.hidden_size
    assert facts.query_parameters[0] == config.num_attention_heads * (made + out)
