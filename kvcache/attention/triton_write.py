"""The Triton kernel that stores K and V at their slots, quantized on the way. Order inside a block: plain."""

# Kernels are in the language of Triton: capitals are constants of a compilation, and pyright has no types for it.
# ruff: noqa: N803
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kvcache.attention.kernel import LayerPages
from kvcache.attention.triton_numbers import as_float32, fp8_levels, int8_levels, scale_of
from kvcache.attention.triton_views import as_stored, strides_of

TOKENS = 8


@triton.jit
def store_rows(
    source, source_token, pages, page_stride, head_stride, scales, scale_page, scale_head, page, offset, tokens, valid,
    kv_head, SIZE: tl.constexpr, PADDED: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """One kv head of some tokens: rows of source [T, kv_heads, SIZE] to the offsets of their pages."""
    columns = tl.arange(0, PADDED)
    there = valid[:, None] & (columns < SIZE)[None, :]
    x = tl.load(source + tokens[:, None] * source_token + kv_head * SIZE + columns[None, :], mask=there, other=0.0)
    target = pages + (page * page_stride + kv_head * head_stride + offset * SIZE)[:, None] + columns[None, :]
    if FORMAT == "model":
        tl.store(target, x, mask=there)
    else:
        wide = as_float32(x)
        scale = scale_of(wide, 448.0 if FORMAT == "fp8" else 127.0)
        ratio = tl.div_rn(wide, tl.broadcast_to(scale[:, None], wide.shape))
        level = fp8_levels(ratio) if FORMAT == "fp8" else int8_levels(ratio)
        tl.store(target, level, mask=there)
        # Its lower half is zero (or that of a NaN): the upper half is the bfloat16.
        upper = (scale.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        tl.store(scales + page * scale_page + kv_head * scale_head + offset, upper, mask=valid)


# The number of tokens changes from step to step, and must not make a compilation of its own.
@triton.jit(do_not_specialize=["count"])
def write_kernel(
    key, key_token, value, value_token, slots, count,
    keys, key_page, key_head, values, value_page, value_head,
    key_scales, key_scale_page, key_scale_head, value_scales, value_scale_page, value_scale_head,
    PAGE_TOKENS: tl.constexpr, KEY_SIZE: tl.constexpr, KEY_PADDED: tl.constexpr, KEY_FORMAT: tl.constexpr,
    VALUE_SIZE: tl.constexpr, VALUE_PADDED: tl.constexpr, VALUE_FORMAT: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A program stores TOKENS tokens of one kv head."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    kv_head = tl.program_id(1).to(tl.int64)
    valid = tokens < count
    slot = tl.load(slots + tokens, mask=valid, other=0)
    page, offset = slot // PAGE_TOKENS, slot % PAGE_TOKENS
    store_rows(
        key, key_token, keys, key_page, key_head, key_scales, key_scale_page, key_scale_head, page, offset, tokens,
        valid, kv_head, KEY_SIZE, KEY_PADDED, KEY_FORMAT,
    )  # fmt: skip
    if values is not None:
        store_rows(
            value, value_token, values, value_page, value_head, value_scales, value_scale_page, value_scale_head, page,
            offset, tokens, valid, kv_head, VALUE_SIZE, VALUE_PADDED, VALUE_FORMAT,
        )  # fmt: skip


def write_arguments(
    key: Tensor, value: Tensor | None, pages: LayerPages, slots: Tensor, page_tokens: int, formats: tuple[str, str]
) -> dict[str, Any]:
    """All arguments of `write_kernel` by name. key and value: each token's heads side by side."""
    return {
        "key": key, "key_token": key.stride(0),
        "value": value, "value_token": 0 if value is None else value.stride(0),
        "slots": slots, "count": slots.shape[0],
        "keys": as_stored(pages.keys), **strides_of("key", pages.keys),
        "values": as_stored(pages.values), **strides_of("value", pages.values),
        "key_scales": pages.key_scales, **strides_of("key_scale", pages.key_scales),
        "value_scales": pages.value_scales, **strides_of("value_scale", pages.value_scales),
        "PAGE_TOKENS": page_tokens, "TOKENS": TOKENS,
        "KEY_SIZE": key.shape[2], "KEY_PADDED": triton.next_power_of_2(key.shape[2]), "KEY_FORMAT": formats[0],
        "VALUE_SIZE": 1 if value is None else value.shape[2],
        "VALUE_PADDED": 1 if value is None else triton.next_power_of_2(value.shape[2]), "VALUE_FORMAT": formats[1],
    }  # fmt: skip


def write_pages(
    key: Tensor, value: Tensor | None, pages: LayerPages, slots: Tensor, page_tokens: int, formats: tuple[str, str]
) -> None:
    """Stores key [T, kv_heads, size] and value at the slots."""
    if slots.shape[0]:
        grid = (triton.cdiv(slots.shape[0], TOKENS), key.shape[1])
        write_kernel[grid](**write_arguments(key, value, pages, slots, page_tokens, formats))
