"""Arguments of the Triton attention kernels, by name: for launches, and for compiling without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages
from kvcache.attention.triton_card import Card
from kvcache.attention.triton_parts import MOST_SPLITS, Part
from kvcache.attention.triton_views import as_stored, strides_of

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Products have 16 elements at least.
LEAST_SECTION = 16
# Merges are compiled for two numbers of splits, not for each.
FEW_SPLITS = 16


@dataclass(frozen=True, slots=True)
class Sections:
    """The two sections in which a row of elements is held: the first has `first` of them, filled up to `main`; the
    rest is filled up to `rest`, 0 for none. All but `first` are powers of two."""

    first: int
    main: int
    rest: int


def sections_of(size: int, first: int | None = None) -> Sections:
    """The largest power of two within `size`, or `first`, and what remains."""
    if first is None:
        first = size if size < LEAST_SECTION else 1 << (size.bit_length() - 1)
    return Sections(first, _padded(first), _padded(size - first) if size > first else 0)


def attend_arguments(
    query: Tensor,
    out: Tensor,
    pages: LayerPages,
    step: GroupStep,
    shape: AttentionShape,
    part: Part,
    card: Card,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> dict[str, Any]:
    """All arguments of `attend_kernel`."""
    key = sections_of(shape.key_size, shape.value_size if shape.latent else None)
    value = sections_of(shape.value_size)
    if shape.latent:
        value = Sections(key.first, key.main, 0)
    partials = part.partials
    return {
        "query": query, "query_token": query.stride(0), "out": out, "sinks": None if partials else sinks,
        "partial": partials.sums if partials else None, "peaks": partials.peaks if partials else None,
        "totals": partials.totals if partials else None,
        "query_starts": step.query_starts, "starts": step.starts, "tables": step.tables,
        "table_columns": step.tables.stride(0), "first_pages": step.first_pages, "sequences": step.starts.shape[0],
        "keys": as_stored(pages.keys), **strides_of("key", pages.keys),
        "values": as_stored(pages.values), **strides_of("value", pages.values),
        "key_scales": pages.key_scales, **strides_of("key_scale", pages.key_scales),
        "value_scales": pages.value_scales, **strides_of("value_scale", pages.value_scales),
        "scaling": scaling, "softcap": softcap,
        **_rows(shape, part), "PAGE_TOKENS": shape.page_tokens, "WINDOW": shape.window or 0, "CHUNKED": shape.chunked,
        "KEY_SIZE": shape.key_size, "KEY_FIRST": key.first, "KEY_MAIN": key.main, "KEY_REST": key.rest,
        "VALUE_FIRST": value.first, "VALUE_MAIN": value.main, "VALUE_REST": value.rest,
        **_types(shape, card), "BLOCK_N": part.configuration.positions,
    }  # fmt: skip


def merge_arguments(
    out: Tensor, step: GroupStep, shape: AttentionShape, part: Part, sinks: Tensor | None
) -> dict[str, Any]:
    """All arguments of `merge_kernel`, for a part that has been split."""
    if part.partials is None:
        raise ValueError("a part that was not split has nothing to merge")
    return {
        "partial": part.partials.sums, "peaks": part.partials.peaks, "totals": part.partials.totals, "out": out,
        "sinks": sinks, "query_starts": step.query_starts, "sequences": step.starts.shape[0], "splits": part.splits,
        "kv_heads": shape.kv_heads, **_rows(shape, part),
        "PADDED_SPLITS": FEW_SPLITS if part.splits <= FEW_SPLITS else MOST_SPLITS,
        "BLOCK_D": min(128, _padded(shape.value_size)),
    }  # fmt: skip


def _rows(shape: AttentionShape, part: Part) -> dict[str, Any]:
    return {
        "LONG": part.long, "SHORT": part.short, "GROUP": shape.heads // shape.kv_heads,
        "BLOCK_M": part.configuration.rows, "VALUE_SIZE": shape.value_size,
    }  # fmt: skip


def _types(shape: AttentionShape, card: Card) -> dict[str, Any]:
    """How elements are stored, and in what types they are multiplied.

    Both quantized formats are exact in bfloat16. Probabilities times scales are multiplied in it even for float16
    models, because a small scale would fall below float16's range.
    """
    value_format = shape.formats.key if shape.latent else shape.formats.value
    scores = sums = torch.float32 if card.interpreted else shape.dtype
    if sums == torch.float16 and value_format.scale_bytes:
        sums = torch.bfloat16
    return {
        "KEY_FORMAT": shape.formats.key.name, "VALUE_FORMAT": value_format.name, "NATIVE": card.native_fp8,
        "SCORE_TYPE": _TYPES[scores], "SUM_TYPE": _TYPES[sums],
    }  # fmt: skip


def _padded(size: int) -> int:
    return max(LEAST_SECTION, triton.next_power_of_2(size))
