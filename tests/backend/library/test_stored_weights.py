"""The packing that a config names, as quantizers write it, and which tensors count."""

from __future__ import annotations

from typing import Any

import pytest

from backend.library.header import TensorEntry
from backend.library.outside import is_encoder, predicts_ahead
from backend.library.stored_weights import stored_weights
from backend.planner.fit.packings import packing


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "fp8-block-g64"),
        ({"quant_method": "fp8"}, "fp8-tensor"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq-g32"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "gptq-g1048576"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "gptq8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq-g64"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "nf4-double"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb-int8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8-tensor"),
        (_compressed("float-quantized", num_bits=8, type="float", strategy="channel"), "fp8"),
        (_compressed("float-quantized", num_bits=8, type="float", strategy="tensor"), "fp8-tensor"),
        (_compressed("int-quantized", num_bits=8, type="int", strategy="channel"), "int8"),
        (_compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128), "int4"),
        (_compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32), "int4-g32"),
        (_compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group"), "nvfp4"),
        ({"quant_method": "something-new"}, "model"),
        ({}, "model"),
    ],
)
def test_quantizers_by_what_they_write(quantization: dict[str, Any], name: str) -> None:
    assert packing(name)
    for config in ({"quantization_config": quantization}, {"text_config": {"quantization_config": quantization}}):
        assert stored_weights(config, None, 4).packing == name


def _tensor(name: str, bytes: int = 10) -> TensorEntry:
    return TensorEntry(name, "I32", (bytes // 4,), "file", 0, bytes)


def test_packed_experts_alone() -> None:
    config = {"quantization_config": _compressed("pack-quantized", num_bits=4, type="int", group_size=32)}
    experts = [_tensor("model.layers.1.mlp.experts.0.up_proj.weight_packed"), _tensor("model.embed_tokens.weight")]
    assert stored_weights(config, experts, 4).packing == "int4-g32+model"
    attention = _tensor("model.layers.1.self_attn.q_proj.weight_scale")
    assert stored_weights(config, [*experts, attention], 4).packing == "int4-g32"


def test_experts_alone_by_what_is_excluded() -> None:
    quantization = _compressed("pack-quantized", num_bits=4, type="int", group_size=32)
    for excluded, name in (
        (["lm_head", "re:.*self_attn.*"], "int4-g32+model"),
        (["lm_head", "model.layers.0.self_attn.q_proj"], "int4-g32"),
        ([], "int4-g32"),
    ):
        config = {"quantization_config": quantization | {"ignore": excluded}}
        assert stored_weights(config, None, 4).packing == name


def test_which_bytes_count() -> None:
    tensors = [_tensor("model.layers.3.mlp.up_proj.weight"), _tensor("model.layers.4.mlp.up_proj.weight", 100)]
    tensors += [_tensor("mtp.layers.0.norm.weight", 1000), _tensor("visual.blocks.7.attn.qkv.weight", 10_000)]
    assert stored_weights({}, tensors, 4).bytes == 10_010


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("visual.patch_embed.proj.weight", True),
        ("model.visual.blocks.0.attn.qkv.weight", True),
        ("vision_tower.encoder.blocks.3.wqkv.weight", True),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", True),
        ("multi_modal_projector.linear_1.weight", True),
        ("model.vision_model.layers.46.mlp.fc1.weight", True),
        ("audio_tower.layers.1.fc1.weight", True),
        ("mm_projector.linear_2.bias", True),
        ("model.embed_vision.embedding_projection.weight", True),
        ("language_model.model.layers.0.self_attn.q_proj.weight", False),
        ("model.language_model.layers.0.mlp.experts.gate_up_proj", False),
        ("model.layers.0.self_attn.indexer.k_proj.weight", False),
        ("model.embed_tokens.weight", False),
        ("transformer.h.0.attn.c_attn.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_encoders_by_their_names(name: str, encoder: bool) -> None:
    assert is_encoder(name) is encoder
    assert not predicts_ahead(name, 48)


@pytest.mark.parametrize(
    ("name", "ahead"),
    [
        ("model.layers.61.embed_tokens.weight", True),
        ("model.layers.60.mlp.experts.0.up_proj.weight", False),
        ("model.layers.2.eh_proj.weight", True),
        ("mtp.fc.weight", True),
        ("vision_tower.encoder.layers.70.fc.weight", False),
    ],
)
def test_what_predicts_ahead(name: str, ahead: bool) -> None:
    assert predicts_ahead(name, 61) is ahead
