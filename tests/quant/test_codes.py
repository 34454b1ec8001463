"""Codes of one byte: what the kernels make of rows, and of codes again, against the codecs, bit for bit."""

from __future__ import annotations

import numpy
import pytest
import torch
from numba import njit  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from quant.cpu.codes import FP8_CODES, INT8_CODES, widen_codes
from quant.cpu.quantize import quantize_row
from quant.cpu.transpose import turn_block
from quant.kv.table import CODECS

KINDS = {"int8": INT8_CODES, "fp8": FP8_CODES}
DTYPES = [torch.float32, torch.bfloat16]


@njit
def _quantize(kind, paired, source, size, codes, scale):
    quantize_row(kind, paired, source, size, codes, scale)


@njit
def _widen(kind, paired, source, target, count):
    widen_codes(kind, paired, source, target, count)


@njit
def _turn(paired, source, target, blocks, stride):
    turn_block(paired, source, target, blocks, stride)


def rows(dtype: torch.dtype) -> Tensor:
    """[rows, 48]: usual rows, tiny and huge ones, zeros, ties, and rows that are not finite."""
    random = torch.Generator().manual_seed(5)
    sizes = torch.tensor([1.0, 1e-3, 1e3, 1e-30, 1e-38, 1e-42, 3e37, 3.3e38])
    x = torch.randn(64, 48, generator=random).clamp(-4, 4) / 4 * sizes.repeat(8)[:, None]
    special = torch.zeros(8, 48)
    special[1] = torch.arange(48) * 0.5
    special[1, 0] = 127.0
    special[2] = torch.arange(48) * 2.0**-10
    special[2, 0] = 448.0
    special[3, 7], special[4, 7], special[5, 7] = float("nan"), float("inf"), float("-inf")
    special[6, 3] = torch.finfo(torch.float32).max
    special[7, 9] = -1e-45
    return torch.cat([x, special]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_rows_become_what_the_codec_makes_of_them(name: str, dtype: torch.dtype) -> None:
    x = rows(dtype)
    stored, scales = CODECS[name].encode(x)
    assert scales is not None
    codes, factors = torch.zeros(x.shape, dtype=torch.uint8), torch.zeros(len(x), dtype=torch.bfloat16)
    for row in range(len(x)):
        _quantize(
            KINDS[name], int(dtype == torch.bfloat16), x[row].data_ptr(), x.shape[1], codes[row].data_ptr(),
            factors[row:].data_ptr(),
        )  # fmt: skip
    torch.testing.assert_close(factors, scales, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        codes.view(stored.dtype).float(), stored.float(), rtol=0, atol=0, equal_nan=True
    )  # fmt: skip


def positions(paired: bool) -> Tensor:
    """Where each code of a group lies, in the order of what it becomes."""
    if not paired:
        return torch.arange(64)
    step, element = torch.arange(64) // 32, torch.arange(64) % 32
    return element // 8 * 16 + step * 8 + element % 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_every_code_is_made_what_it_stands_for(name: str, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(CODECS[name].dtype(dtype)).float()
    paired = dtype == torch.bfloat16
    packed = torch.empty(4, 64, dtype=torch.uint8)
    packed[:, positions(paired)] = codes.view(4, 64)
    found = torch.empty(256, dtype=dtype)
    _widen(KINDS[name], int(paired), packed.data_ptr(), found.data_ptr(), 4)
    known = torch.ones(256, dtype=torch.bool)
    known[0x80] = name != "int8"
    torch.testing.assert_close(found.float()[known], expected[known], rtol=0, atol=0, equal_nan=True)
    assert numpy.signbit(found.float().numpy()[0x80]) or name == "int8"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_of_keys_becomes_blocks_of_values(dtype: torch.dtype) -> None:
    pair = 2 if dtype == torch.bfloat16 else 1
    plain = torch.randn(16, 48).to(dtype)  # [positions, elements]
    keys = plain.view(16, 48 // pair, pair).permute(1, 0, 2).contiguous()
    values = torch.zeros(3, 64 // pair, 16, pair, dtype=dtype)
    stride = 64 * 16 * values.element_size()
    _turn(int(pair == 2), keys.data_ptr(), values[:, 16 // pair :].data_ptr(), 2, stride)
    expected = torch.zeros_like(values)
    turned = plain[:, :32].view(16 // pair, pair, 2, 16).permute(2, 0, 3, 1)
    expected[:2, 16 // pair : 32 // pair] = turned
    assert torch.equal(values, expected)
