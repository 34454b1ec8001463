"""Bytes of packed weights: against tensors as quantizers leave them, and against published checkpoints."""

from __future__ import annotations

import pytest
import torch

from backend.errors import SettingError
from backend.library.model_table import known_from_catalogue
from backend.planner.fit.packings import PACKINGS, packed_bytes, packing
from quant.weight_sizes import LinearShape
from tests.fakes.packed_checkpoints import Packer, awq, gptq


@pytest.mark.parametrize(
    ("name", "pack"),
    [("awq-g32", awq), ("gptq-g32", gptq(4, 1)), ("gptq8-g32", gptq(8, 1))],
    ids=("awq", "gptq", "gptq8"),
)
def test_a_packed_linear_takes_what_its_tensors_take(name: str, pack: Packer) -> None:
    parts = pack(torch.randn(64, 96), torch.Generator().manual_seed(1)).parts
    assert packing(name).linear_bytes(LinearShape(64, 96), 2) == sum(part.nbytes for part in parts.values())


@pytest.mark.parametrize(
    ("name", "bytes"),
    [
        ("model", 2 * 256 * 512),
        ("fp8", 256 * 512 + 4 * 256),
        ("fp8-tensor", 256 * 512 + 8),
        ("fp8-block", 256 * 512 + 4 * 2 * 4),
        ("int4", 256 * 512 // 2 + 2 * 256 * 4),
        ("nf4", 256 * 512 // 2 + 4 * 256 * 8),
        ("nf4-double", 256 * 512 // 2 + 256 * 8 + 4 * 8),
        ("nvfp4", 256 * 512 // 2 + 256 * 32 + 8),
        ("gguf:Q8_0", 256 * 512 * 34 // 32),
        ("gguf:Q4_0", 256 * 512 * 18 // 32),
    ],
)
def test_a_linear_of_256_by_512(name: str, bytes: int) -> None:
    assert packing(name).linear_bytes(LinearShape(256, 512), 2) == bytes


# What the repositories' model.safetensors.index.json call total_size.
@pytest.mark.parametrize(
    ("name", "total"), [("openai/gpt-oss-20b", 13_761_264_768), ("openai/gpt-oss-120b", 65_248_815_744)]
)
def test_published_checkpoints_to_the_byte(name: str, total: int) -> None:
    known = known_from_catalogue(name)
    assert known is not None
    assert packed_bytes(known.facts, known.stored.packing) == total


@pytest.mark.parametrize("name", PACKINGS)
def test_bits_are_what_a_large_linear_takes(name: str) -> None:
    one = packing(name)
    shape = LinearShape(8192, 8192, expert=True)
    assert one.linear_bytes(shape, 2) * 8 / 8192**2 == pytest.approx(one.bits, rel=0.002)


def test_what_stays_in_the_models_dtype() -> None:
    output = LinearShape(1000, 64, kept=True)
    assert packing("awq").linear_bytes(output, 2) == 2 * 1000 * 64
    assert packing("gguf:Q8_0").linear_bytes(output, 2) == 1000 * 64 * 34 // 32
    plain, expert = LinearShape(256, 128, bias=True), LinearShape(256, 128, bias=True, expert=True)
    assert packing("mxfp4").linear_bytes(plain, 2) == 2 * 256 * 129
    assert packing("mxfp4").linear_bytes(expert, 2) == 256 * (64 + 4) + 2 * 256
    both = packing("mxfp4+fp8-block")
    assert both.linear_bytes(plain, 2) == 256 * 128 + 2 * 4 + 2 * 256
    assert both.linear_bytes(expert, 2) == packing("mxfp4").linear_bytes(expert, 2)


def test_a_tied_table_is_packed_once() -> None:
    known = known_from_catalogue("meta-llama/Llama-3.2-1B")
    assert known is not None
    assert packed_bytes(known.facts, "gguf:Q8_0") == pytest.approx(known.facts.parameters * 8.5 / 8, rel=0.001)
    known = known_from_catalogue("meta-llama/Meta-Llama-3.1-8B")
    assert known is not None
    # The file of this model and kind on the hub has 4,920,734,272 bytes.
    assert packed_bytes(known.facts, "gguf:Q4_K_M") == pytest.approx(4_920_734_272, rel=0.005)


def test_a_smaller_group_takes_more() -> None:
    shape = LinearShape(4096, 4096)
    sizes = [packing(name).linear_bytes(shape, 2) for name in ("int4-g128", "int4-g64", "int4-g32")]
    assert sizes == sorted(sizes)
    assert packing("int4-g128").linear_bytes(shape, 2) == packing("int4").linear_bytes(shape, 2)


@pytest.mark.parametrize("name", ["", "int3", "fp8-g64", "gptq-g0", "gguf:Q9_9", "mxfp4+nothing", "-g32"])
def test_an_unknown_packing_is_named(name: str) -> None:
    with pytest.raises(SettingError, match=r"no packing"):
        packing(name)
