"""CacheLayout: which layers keep what, in groups, and where the bytes of a page lie. Pure data, no torch.

A page is head-major: kv head, then layer, then all keys of the page's tokens, then all values:

    page  = [kv_head 0][kv_head 1]...
    head  = [layer 0][layer 1]...                 (the group's layers)
    layer = [key: page_tokens x key_bytes][value: page_tokens x value_bytes]

so one head's, and a contiguous share of heads', bytes are one range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Keeps(Enum):
    """What a layer's cache keeps: every position, or those inside a sliding window."""

    FULL = "full"
    SLIDING = "sliding"


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one attention layer keeps. `window` counts positions a token sees, itself included; None for FULL."""

    keeps: Keeps
    window: int | None
    kv_heads: int
    key_size: int
    value_size: int


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share one page table: equal `keeps`, window, heads and sizes.

    `slots` are the indices of the model's attention layers, in order; `page_tokens` is a power of two.
    """

    keeps: Keeps
    window: int | None
    kv_heads: int
    key_size: int
    value_size: int
    slots: tuple[int, ...]
    page_tokens: int

    def token_bytes(self, element_bytes: int) -> int:
        """Bytes that one position takes over the group's layers."""
        return len(self.slots) * self.kv_heads * (self.key_size + self.value_size) * element_bytes


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The groups of a model, and the bytes of a page, equal over them (a group that fills less leaves the rest unused).

    `element_bytes` is the size of one stored K or V element.
    """

    groups: tuple[CacheGroup, ...]
    element_bytes: int
    page_bytes: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position takes over all layers, while every group still keeps it."""
        return sum(group.token_bytes(self.element_bytes) for group in self.groups)


def build_layout(layers: tuple[LayerCache, ...], element_bytes: int, page_tokens: int = 16) -> CacheLayout:
    """Groups layers that keep alike, in the order of each group's first layer, and gives all groups pages of one size.

    The group with the most bytes per token gets `page_tokens` positions a page; every other one gets the largest power
    of two that fits into as many bytes. Raises ValueError for values that make no layout.
    """
    if not layers:
        raise ValueError("a cache layout needs at least one attention layer")
    if element_bytes < 1:
        raise ValueError(f"a stored element cannot take {element_bytes} bytes")
    if not _is_power_of_two(page_tokens):
        raise ValueError(f"page_tokens is {page_tokens}, and must be a power of two")
    members: dict[LayerCache, list[int]] = {}
    for slot, layer in enumerate(layers):
        _check_layer(slot, layer)
        members.setdefault(layer, []).append(slot)
    groups = [_group(layer, tuple(slots), page_tokens) for layer, slots in members.items()]
    page_bytes = page_tokens * max(group.token_bytes(element_bytes) for group in groups)
    return CacheLayout(
        groups=tuple(
            replace(group, page_tokens=_power_of_two_within(page_bytes // group.token_bytes(element_bytes)))
            for group in groups
        ),
        element_bytes=element_bytes,
        page_bytes=page_bytes,
    )


def _group(layer: LayerCache, slots: tuple[int, ...], page_tokens: int) -> CacheGroup:
    return CacheGroup(
        keeps=layer.keeps,
        window=layer.window,
        kv_heads=layer.kv_heads,
        key_size=layer.key_size,
        value_size=layer.value_size,
        slots=slots,
        page_tokens=page_tokens,
    )


def _check_layer(slot: int, layer: LayerCache) -> None:
    if min(layer.kv_heads, layer.key_size, layer.value_size) < 1:
        raise ValueError(f"layer {slot} keeps nothing: {layer}")
    if layer.keeps is Keeps.FULL and layer.window is not None:
        raise ValueError(f"layer {slot} keeps every position, yet has a window of {layer.window}")
    if layer.keeps is Keeps.SLIDING and (layer.window is None or layer.window < 1):
        raise ValueError(f"layer {slot} slides over a window of {layer.window} positions, and needs at least 1")


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _power_of_two_within(number: int) -> int:
    """The largest power of two that is at most `number`, which is at least 1."""
    return 1 << (number.bit_length() - 1)
