"""Packed checkpoints that are read, and how every other is refused: by its method, and by what of it is not read."""

from __future__ import annotations

from typing import Any

import pytest

from backend.errors import UnsupportedModelError
from backend.library.packed import PROBLEMS, refuse_unreadable
from backend.surgery.packings.table import PACKINGS


def groups(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
        {"quant_method": "fp8", "weight_block_size": None},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
        {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"},
        {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True},
        {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        groups(type="float", num_bits=8, strategy="channel") | {"format": "float-quantized"},
    ],
)
def test_what_is_read(quantization: dict[str, Any]) -> None:
    refuse_unreadable("m", quantization)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({}, "an unknown method"),
        ({"quant_method": "aqlm"}, "packed by aqlm"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "blocks are 128"),
        ({"quant_method": "gptq", "bits": 3}, "these are 3"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}, "differ"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "no zero points"),
        ({"quant_method": "awq", "bits": 3}, "these are 3"),
        (groups() | {"format": "pack-quantized"}, "pack-quantized"),
        (groups(type="int", num_bits=8) | {"format": "float-quantized"}, "floating point"),
        (groups(type="float", num_bits=8, strategy="group") | {"format": "float-quantized"}, "one for each group"),
    ],
)
def test_what_is_refused_by_name(quantization: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        refuse_unreadable("some/model", quantization)
    assert words in refused.value.why
    assert "some/model" in refused.value.what
    assert refused.value.hint


def test_every_method_that_is_let_through_has_a_reader() -> None:
    assert set(PROBLEMS) == set(PACKINGS)
