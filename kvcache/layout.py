"""CacheLayout: which layers keep what, in groups, and where the bytes of a page lie. Pure data, no torch.

A page is head-major: kv head, then layer, then all keys of the page's tokens, then all values:

    page  = [kv_head 0][kv_head 1]...
    head  = [layer 0][layer 1]...                 (the group's layers)
    layer = [key: page_tokens x key_bytes][value: page_tokens x value_bytes]

so one head's, and a contiguous share of heads', bytes are one range.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The groups of a model, and the bytes of a page, equal over them (a group that fills less leaves the rest unused).

    `element_bytes` is the size of one stored K or V element.
    """

    groups: tuple[CacheGroup, ...]
    element_bytes: int
    page_bytes: int
