"""What describe finds in a config, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from backend.errors import UnsupportedModelError
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
