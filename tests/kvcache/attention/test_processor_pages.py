"""What the processor kernel writes into pages, read back in the plain order: what the codecs make, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages
from kvcache.attention.processor import ProcessorKernel
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from quant.cpu.team import Team
from quant.kv.table import CODECS
from quant.kv_format import parse_kv_formats

HEADS, KEY, VALUE, TOKENS = 2, 48, 32, 75


def plain_groups(packed: Tensor, pair: int) -> Tensor:
    """[.., steps, 16, pair] of packed elements as stored, where codes for pairs lie two steps interleaved."""
    if packed.element_size() > 1 or pair == 1:
        return packed
    groups = packed.reshape(*packed.shape[:-3], packed.shape[-3] // 2, 4, 2, 4, 2)
    return groups.transpose(-3, -4).reshape(packed.shape)


def plain_keys(pages: Tensor, pair: int) -> Tensor:
    """[pages, heads, page_tokens, size] in the kernel's order -> positions in order."""
    count, heads, tokens, size = pages.shape
    packed = plain_groups(pages.reshape(count, heads, tokens // 16, size // pair, 16, pair), pair)
    return packed.transpose(-3, -2).reshape(pages.shape)


def plain_values(pages: Tensor, pair: int) -> Tensor:
    count, heads, tokens, size = pages.shape
    packed = plain_groups(pages.reshape(count, heads, size // 16, tokens // pair, 16, pair), pair)
    return packed.permute(0, 1, 3, 5, 2, 4).reshape(pages.shape)


def written(formats: str, dtype: torch.dtype, page_tokens: int, *, latent: bool = False):
    """Fresh pages in which all bits are set, with TOKENS tokens written; the key and value that they were."""
    stored = parse_kv_formats(formats)
    keeps = Keeps.LATENT if latent else Keeps.FULL
    layout = build_layout((LayerCache(keeps, None, HEADS, KEY, VALUE),), dtype.itemsize, page_tokens, stored)
    memory = PageMemory(layout, -(-TOKENS // page_tokens) + 1, dtype, torch.device("cpu"))
    for page in range(memory.pages):
        memory.page(page).fill_(0xFF)
    random = torch.Generator().manual_seed(3)
    key, value = (torch.randn(TOKENS, HEADS, size, generator=random).to(dtype) for size in (KEY, VALUE))
    key[3] = 0.0
    value[4, 1, 5] = float("nan")
    order = torch.randperm(memory.pages, generator=random)
    slots = order[torch.arange(TOKENS) // page_tokens] * page_tokens + torch.arange(TOKENS) % page_tokens
    step = GroupStep(
        torch.tensor([0, TOKENS]).int(), torch.zeros(1).int(), order[None].int(), torch.zeros(1).int(), slots, TOKENS,
        TOKENS,
    )  # fmt: skip
    shape = AttentionShape(
        HEADS, HEADS, KEY, VALUE, page_tokens, None, dtype, torch.device("cpu"), latent=latent, formats=stored
    )
    team = Team(2)
    kernel = ProcessorKernel(team)
    pages = memory.layers[0]
    kernel.write(key, None if latent else value, pages, kernel.prepare(step, shape))
    team.close()
    return pages, slots, key, value


def assert_holds(plain: Tensor, scales: Tensor | None, slots: Tensor, x: Tensor, name: str) -> None:
    stored, factors = CODECS[name].encode(x)
    found = plain.transpose(1, 2).flatten(0, 1)[slots]
    torch.testing.assert_close(found.float(), stored.float(), rtol=0, atol=0, equal_nan=True)
    if factors is not None:
        assert scales is not None
        found = scales.transpose(1, 2).flatten(0, 1)[slots]
        torch.testing.assert_close(found, factors, rtol=0, atol=0, equal_nan=True)


def unwritten(plain: Tensor, slots: Tensor) -> Tensor:
    """What lies behind the last token in its page."""
    tokens = plain.shape[2]
    return plain[int(slots[-1]) // tokens, :, int(slots[-1]) % tokens + 1 :]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("formats", "page_tokens"),
    [("int8", 16), ("fp8", 16), ("k=fp8,v=int8", 128), ("k=model,v=fp8", 64), ("k=int8,v=model", 16), ("model", 128)],
)
def test_pages_hold_what_the_codecs_make(formats: str, page_tokens: int, dtype: torch.dtype) -> None:
    pages, slots, key, value = written(formats, dtype, page_tokens)
    assert pages.values is not None
    pair, stored = 4 // dtype.itemsize, parse_kv_formats(formats)
    assert_holds(plain_keys(pages.keys, pair), pages.key_scales, slots, key, stored.key.name)
    values = plain_values(pages.values, pair)
    assert_holds(values, pages.value_scales, slots, value, stored.value.name)
    # A weight of 0 meets what was never written.
    assert (unwritten(values, slots).float() == 0).all()


@pytest.mark.parametrize("formats", ["model", "int8", "fp8"])
def test_a_latents_page_is_cleared_like_values(formats: str) -> None:
    pages, slots, key, _ = written(formats, torch.bfloat16, 32, latent=True)
    assert isinstance(pages, LayerPages)
    assert pages.values is None
    plain = plain_keys(pages.keys, 2)
    assert_holds(plain, pages.key_scales, slots, key, formats)
    assert (unwritten(plain, slots).float() == 0).all()
