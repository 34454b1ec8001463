"""What the Triton kernel stores, under the interpreter: byte for byte what the codecs store."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages
from kvcache.attention.reference import ReferenceKernel
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from quant.kv_format import parse_kv_formats
from tests.fakes.interpreted import interpreted_kernel

CPU = torch.device("cpu")
KV_HEADS, KEY_SIZE, VALUE_SIZE, PAGE_TOKENS, PAGES = 2, 40, 24, 8, 7


def rows(tokens: int, size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """[tokens, kv_heads, size]: tokens of very different magnitude, a row of zeros, one of halves and odd levels."""
    random = torch.Generator().manual_seed(seed)
    limits = torch.finfo(dtype)
    exponents = torch.linspace(-24, 15, tokens).exp2()[:, None, None]
    x = torch.randn(tokens, KV_HEADS, size, generator=random) * exponents
    x[0] = 0
    x[1] = torch.arange(size) - size / 2 + 0.5
    x[1, :, 0] = 127
    x[2, :, 0] = limits.max
    x[3] = torch.randn(KV_HEADS, size, generator=random) * limits.tiny
    x[4] = limits.smallest_normal * limits.eps
    return x.clamp(limits.min, limits.max).to(dtype)


def shape_of(formats: str, dtype: torch.dtype) -> AttentionShape:
    return AttentionShape(4, KV_HEADS, KEY_SIZE, VALUE_SIZE, PAGE_TOKENS, None, dtype, CPU,
                          formats=parse_kv_formats(formats))  # fmt: skip


def memory_of(shape: AttentionShape) -> PageMemory:
    layer = LayerCache(Keeps.FULL, None, KV_HEADS, KEY_SIZE, VALUE_SIZE)
    layout = build_layout((layer,) * 2, shape.dtype.itemsize, PAGE_TOKENS, shape.formats)
    memory = PageMemory(layout, PAGES, shape.dtype, CPU)
    for page in range(PAGES):
        memory.page(page).fill_(0xA5)
    return memory


def step_at(slots: Tensor) -> GroupStep:
    """A step whose only use is to be written."""
    count = slots.shape[0]
    none = torch.zeros(1, dtype=torch.int32)
    return GroupStep(torch.tensor([0, count], dtype=torch.int32), none, none[None], none, slots, count, count)


def written(kernel, shape: AttentionShape, key: Tensor, value: Tensor, slots: Tensor) -> tuple[PageMemory, LayerPages]:
    memory = memory_of(shape)
    pages = memory.layers[1]
    kernel.write(key, value, pages, kernel.prepare(step_at(slots), shape))
    return memory, pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("formats", ["model", "fp8", "int8", "k=int8,v=fp8", "k=fp8"])
def test_all_bytes_of_the_pool_equal_those_that_the_codecs_write(formats: str, dtype: torch.dtype) -> None:
    """The whole pool: other layers, unwritten offsets and unused bytes keep what they had."""
    shape = shape_of(formats, dtype)
    slots = torch.randperm(PAGES * PAGE_TOKENS, generator=torch.Generator().manual_seed(1))[:37]
    key, value = rows(37, KEY_SIZE, dtype, 2), rows(37, VALUE_SIZE, dtype, 3)
    ours, _ = written(interpreted_kernel(), shape, key, value, slots)
    expected, _ = written(ReferenceKernel(), shape, key, value, slots)
    for page in range(PAGES):
        assert torch.equal(ours.page(page), expected.page(page))


# The interpreter computes with numpy, which warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("formats", ["fp8", "int8"])
def test_rows_that_are_not_finite_keep_that_in_their_scale(formats: str) -> None:
    shape = shape_of(formats, torch.float32)
    key, value = rows(8, KEY_SIZE, torch.float32, 2), rows(8, VALUE_SIZE, torch.float32, 3)
    key[0, 0, 3], key[1, 1, 0], value[2, 0, 5] = float("nan"), float("inf"), -float("inf")
    slots = torch.arange(8)
    _, pages = written(interpreted_kernel(), shape, key, value, slots)
    _, expected = written(ReferenceKernel(), shape, key, value, slots)
    for found, wanted in ((pages.key_scales, expected.key_scales), (pages.value_scales, expected.value_scales)):
        assert found is not None
        assert wanted is not None
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(pages.keys[0].float(), expected.keys[0].float(), rtol=0, atol=0, equal_nan=True)


def test_rows_may_lie_apart_in_memory() -> None:
    """K and V come as slices of one product of all three projections."""
    shape = shape_of("int8", torch.float32)
    merged = torch.randn(5, KV_HEADS * (KEY_SIZE + VALUE_SIZE), generator=torch.Generator().manual_seed(1))
    edge = KV_HEADS * KEY_SIZE
    key, value = merged[:, :edge].unflatten(1, (KV_HEADS, KEY_SIZE)), merged[:, edge:].unflatten(1, (KV_HEADS, -1))
    slots = torch.tensor([3, 50, 8, 17, 0])
    ours, _ = written(interpreted_kernel(), shape, key, value, slots)
    expected, _ = written(ReferenceKernel(), shape, key.contiguous(), value.contiguous(), slots)
    assert all(torch.equal(ours.page(page), expected.page(page)) for page in range(PAGES))
