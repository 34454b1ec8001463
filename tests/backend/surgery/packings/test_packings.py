"""Packed checkpoints become, bit for bit, the weights that they stand for, and may be stored in any format then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from backend.errors import BrokenModelError
from backend.library.checks import check
from backend.library.files import ModelFiles
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.packings.fp8 import Fp8Packing
from backend.surgery.packings.mxfp4 import Mxfp4Packing
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.packed_checkpoints import (
    FP4,
    Packer,
    awq,
    fp8_blocks,
    fp8_channels,
    fp8_whole,
    gptq,
    state_quantization,
    write_packed,
)
from tests.fakes.tiny_models import make_checkpoint

CHANNELS = {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}}
METHODS: dict[str, tuple[Packer, dict[str, Any]]] = {
    "fp8 in blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [32, 24]}),
    "fp8 whole": (fp8_whole, {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}),
    "compressed-tensors": (
        fp8_channels,
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": CHANNELS},
    ),
    "gptq": (gptq(4, 1), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}),
    "gptq of 8 bits": (gptq(8, 1), {"quant_method": "gptq", "bits": 8, "group_size": 32}),
    "gptq_v2": (gptq(4, 0), {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
}


def load(files: ModelFiles, dtype: torch.dtype = torch.float32, stored: str | None = None) -> ServedModel:
    return load_model(
        files,
        dtype=dtype,
        device=torch.device("cpu"),
        on_progress=lambda done, total: None,
        stored=WEIGHT_FORMATS[stored] if stored else None,
    )


def parameters(model: ServedModel) -> dict[str, Tensor]:
    return dict(model.module.named_parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_checkpoint_is_read_as_the_weights_it_stands_for(
    method: str, family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    packed, plain = write_packed(tmp_path, family, *METHODS[method])
    check(packed)
    found, expected = parameters(load(packed, dtype)), parameters(load(plain, dtype))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_packed_checkpoint_is_stored_in_the_format_asked_for(tmp_path: Path) -> None:
    packed, plain = write_packed(tmp_path, "llama", *METHODS["gptq"])
    assert load(packed, stored="int8").weights_bytes == load(plain, stored="int8").weights_bytes


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_missing_part_is_named(part: str, tmp_path: Path) -> None:
    packed, _ = write_packed(tmp_path, "llama", *METHODS["awq"])
    tensors = load_file(packed.weights[0])
    del tensors[f"model.layers.1.mlp.up_proj.{part}"]
    save_file(tensors, packed.weights[0], {"format": "pt"})
    with pytest.raises(BrokenModelError, match=rf"model\.layers\.1\.mlp\.up_proj\.weight misses {part}"):
        load(packed)


@pytest.mark.parametrize("method", ["fp8 in blocks", "gptq", "awq"])
def test_scales_of_another_shape_are_named(method: str, tmp_path: Path) -> None:
    packed, _ = write_packed(tmp_path, "llama", *METHODS[method])
    tensors = load_file(packed.weights[0])
    name = next(name for name in tensors if name.endswith(("scale_inv", "scales")))
    tensors[name] = torch.ones(5, 3)
    save_file(tensors, packed.weights[0], {"format": "pt"})
    with pytest.raises(BrokenModelError, match=r"has scales \[5, 3\]"):
        load(packed)


def test_fp8_blocks_are_unpacked_as_transformers_does() -> None:
    random = torch.Generator().manual_seed(1)
    stored = torch.randn(256, 384, generator=random).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3, generator=random)
    theirs = Fp8Dequantize(None)._dequantize_one(stored, scale, torch.float32)
    ours = Fp8Packing("weight_scale_inv", (128, 128)).unpack({"weight": stored, "weight_scale_inv": scale})
    assert torch.equal(ours, theirs)


def random_mxfp4(experts: int, columns: int, depth: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(columns)
    blocks = torch.randint(0, 256, (experts, columns, depth // 32, 16), generator=random).to(torch.uint8)
    scales = torch.randint(119, 126, (experts, columns, depth // 32), generator=random).to(torch.uint8)
    return {"_proj_blocks": blocks, "_proj_scales": scales}


def test_mxfp4_is_unpacked_as_transformers_does_and_as_the_specification_says() -> None:
    parts = random_mxfp4(2, 6, 64)
    found = Mxfp4Packing().unpack(parts)
    assert torch.equal(found, convert_moe_packed_tensors(parts["_proj_blocks"], parts["_proj_scales"]))
    byte, scale = int(parts["_proj_blocks"][1, 4, 1, 3]), int(parts["_proj_scales"][1, 4, 1])
    for half, nibble in enumerate((byte & 15, byte >> 4)):
        value = FP4[nibble & 7] * (-1 if nibble & 8 else 1) * 2.0 ** (scale - 127)
        assert found[1, 32 + 2 * 3 + half, 4] == value


def test_gpt_oss_is_read_as_it_is_published(tmp_path: Path) -> None:
    files, plain = (make_checkpoint("gpt-oss", tmp_path / name) for name in ("packed", "plain"))
    tensors, unpacked = load_file(files.weights[0]), load_file(plain.weights[0])
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, depth, columns = tensors.pop(name).shape
        parts = random_mxfp4(experts, columns, depth)
        start = name.removesuffix("_proj")
        tensors |= {f"{start}{part}": value for part, value in parts.items()}
        unpacked[name] = convert_moe_packed_tensors(*parts.values()).float().contiguous()
    save_file(tensors, files.weights[0], {"format": "pt"})
    save_file(unpacked, plain.weights[0], {"format": "pt"})
    state_quantization(files, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    check(files)
    found, expected = parameters(load(files)), parameters(load(plain))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
