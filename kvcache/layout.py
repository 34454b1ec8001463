"""CacheLayout: which layers keep what, in groups, and where the bytes of a page lie. Pure data, no torch.

A page is head-major: kv head, then layer, then a block of each kind for all of the page's tokens:

    page  = [kv_head 0][kv_head 1]...
    head  = [layer 0][layer 1]...                 (the group's layers)
    layer = [keys][values][scales of keys][scales of values]

so one head's, and a contiguous share of heads', bytes are one range. Scales exist where a format has them; layers that
keep latents have no values of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from quant.kv_format import KVFormats

# Bytes to which pages of a rank's share are aligned.
_ALIGNMENT = 16


class Keeps(Enum):
    """What a layer's cache keeps.

    FULL: every position. SLIDING: those inside a sliding window. CHUNKED: those of a token's own chunk. LATENT: every
    position's latent (multi-head latent attention), of which the first `value_size` elements are also the value.
    """

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    LATENT = "latent"


def oldest_seen(position: int, window: int | None, chunked: bool) -> int:
    """The first position that the token at `position` sees."""
    if window is None:
        return 0
    return position // window * window if chunked else max(0, position - window + 1)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one attention layer keeps.

    `window` counts the positions a token of a sliding layer sees, itself included, or those of a chunk; None else.
    """

    keeps: Keeps
    window: int | None
    kv_heads: int
    key_size: int
    value_size: int

    @property
    def stored_values(self) -> int:
        """Elements that a token and head stores beside its key."""
        return 0 if self.keeps is Keeps.LATENT else self.value_size


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share one page table: equal in all that a LayerCache says.

    `slots` are the indices of the model's attention layers, in order; `page_tokens` is a power of two.
    """

    layer: LayerCache
    slots: tuple[int, ...]
    page_tokens: int

    @property
    def window(self) -> int | None:
        return self.layer.window

    @property
    def chunked(self) -> bool:
        return self.layer.keeps is Keeps.CHUNKED


@dataclass(frozen=True, slots=True)
class LayerBlocks:
    """Where a layer's four blocks lie in its head's bytes of a page: offsets, and the bytes of all four together."""

    keys: int
    values: int
    key_scales: int
    value_scales: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The groups of a model, and the bytes of a page, equal over them (a group that fills less leaves the rest unused).

    `model_bytes` is the size of an element in the model's own type.
    """

    groups: tuple[CacheGroup, ...]
    formats: KVFormats
    model_bytes: int
    page_bytes: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position takes over all layers, scales included, while every group still keeps it."""
        return sum(self.token_bytes(group) for group in self.groups)

    def token_bytes(self, group: CacheGroup) -> int:
        """Bytes that one position takes over the group's layers."""
        return len(group.slots) * _layer_bytes(group.layer, self.formats, self.model_bytes)

    def head_bytes(self, group: CacheGroup) -> int:
        """Bytes of one kv head in a page of the group."""
        return len(group.slots) * self.blocks(group).bytes

    def blocks(self, group: CacheGroup) -> LayerBlocks:
        """Where a layer of the group has its blocks."""
        layer, formats, tokens = group.layer, self.formats, group.page_tokens
        keys = tokens * layer.key_size * formats.key.element_bytes(self.model_bytes)
        values = tokens * layer.stored_values * formats.value.element_bytes(self.model_bytes)
        key_scales = tokens * formats.key.scale_bytes
        value_scales = tokens * formats.value.scale_bytes if layer.stored_values else 0
        edge = keys + values
        return LayerBlocks(0, keys, edge, edge + key_scales, edge + key_scales + value_scales)


def build_layout(
    layers: tuple[LayerCache, ...], model_bytes: int, page_tokens: int = 16, formats: KVFormats | None = None
) -> CacheLayout:
    """Groups layers that keep alike, in the order of each group's first layer, and gives all groups pages of one size.

    The group with the most bytes per token gets `page_tokens` positions a page; every other one gets the largest power
    of two that fits into as many bytes. Raises ValueError for values that make no layout.
    """
    formats = formats or KVFormats()
    if not layers:
        raise ValueError("a cache layout needs at least one attention layer")
    if model_bytes < 1:
        raise ValueError(f"a stored element cannot take {model_bytes} bytes")
    if not _is_power_of_two(page_tokens):
        raise ValueError(f"page_tokens is {page_tokens}, and must be a power of two")
    members: dict[LayerCache, list[int]] = {}
    for slot, layer in enumerate(layers):
        members.setdefault(layer, []).append(slot)
    for layer, slots in members.items():
        _check_layer(slots[0], layer)
    groups = tuple(CacheGroup(layer, tuple(slots), page_tokens) for layer, slots in members.items())
    plain = CacheLayout(groups, formats, model_bytes, 0)
    page_bytes = page_tokens * max(plain.token_bytes(group) for group in groups)
    return replace(
        plain,
        page_bytes=page_bytes,
        groups=tuple(
            replace(group, page_tokens=_power_of_two_within(page_bytes // plain.token_bytes(group))) for group in groups
        ),
    )


def stage_layout(layout: CacheLayout, slots: range) -> CacheLayout:
    """The layout of a stage that has these slots only, numbered anew: a page holds as many positions as anywhere.

    So page ids and tables are equal on all stages; groups without slots here have none, see `stage_groups`.
    """
    groups = (
        replace(group, slots=tuple(slot - slots.start for slot in group.slots if slot in slots))
        for group in layout.groups
    )
    return replace(layout, groups=tuple(group for group in groups if group.slots))


def stage_groups(layout: CacheLayout, slots: range) -> tuple[int, ...]:
    """Which of the model's groups the stage's layout has, in its order."""
    return tuple(number for number, group in enumerate(layout.groups) if any(slot in slots for slot in group.slots))


def rank_layout(layout: CacheLayout, layers: tuple[LayerCache, ...]) -> CacheLayout:
    """The layout of a rank that keeps only its share of the heads: groups, slots and page_tokens of the whole model's.

    So page ids and tables are equal on all ranks, and a page of a rank is as large as its heads make it, rounded up so
    that elements of every format stay aligned. `layers` are the rank's own, by slot. Raises ValueError where they
    differ from the model's in more than the count of heads, or within a group.
    """
    own = tuple(replace(group, layer=_share(group, layers)) for group in layout.groups)
    share = replace(layout, groups=own)
    used = max(group.page_tokens * share.token_bytes(group) for group in own)
    return replace(share, page_bytes=-(-used // _ALIGNMENT) * _ALIGNMENT)


def _share(group: CacheGroup, layers: tuple[LayerCache, ...]) -> LayerCache:
    """What each layer of the group keeps on a rank."""
    layer = layers[group.slots[0]]
    unlike = [layers[slot] for slot in group.slots if layers[slot] is not layer and layers[slot] != layer]
    if unlike:
        raise ValueError(f"layers {group.slots} share pages, and keep unlike shares on a rank: {[layer, *unlike]}")
    if replace(layer, kv_heads=group.layer.kv_heads) != group.layer:
        raise ValueError(f"a rank's share of {group.layer} cannot be {layer}")
    return layer


def _layer_bytes(layer: LayerCache, formats: KVFormats, model_bytes: int) -> int:
    """Bytes of one position in one layer."""
    row = formats.key.row_bytes(layer.key_size, model_bytes)
    if layer.stored_values:
        row += formats.value.row_bytes(layer.stored_values, model_bytes)
    return layer.kv_heads * row


def _check_layer(slot: int, layer: LayerCache) -> None:
    if min(layer.kv_heads, layer.key_size, layer.value_size) < 1:
        raise ValueError(f"layer {slot} keeps nothing: {layer}")
    bounded = layer.keeps in (Keeps.SLIDING, Keeps.CHUNKED)
    if not bounded and layer.window is not None:
        raise ValueError(f"layer {slot} keeps every position, yet has a window of {layer.window}")
    if bounded and (layer.window is None or layer.window < 1):
        raise ValueError(f"layer {slot} sees a window of {layer.window} positions, and needs at least 1")
    if layer.keeps is Keeps.LATENT and layer.value_size > layer.key_size:
        raise ValueError(f"layer {slot} has latents of {layer.key_size} elements, and values of {layer.value_size}")


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _power_of_two_within(number: int) -> int:
    """The largest power of two that is at most `number`, which is at least 1."""
    return 1 << (number.bit_length() - 1)
