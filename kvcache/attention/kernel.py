"""AttentionKernel: the seam between paged K and V and whoever computes attention over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from kvcache.layout import oldest_seen
from quant.kv_format import KVFormats


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's keys and values inside the pool, as strided views; nothing is copied.

    keys: [pages, kv_heads, page_tokens, key_size]; values: [pages, kv_heads, page_tokens, value_size]; both in their
    format's stored type, and None for values where latents are kept: these are the first value_size elements of each
    key. The last two dimensions are contiguous: one block of memory, whose inner order is the kernel's own (the
    reference keeps it plain). One pool is written and read by one kernel.
    key_scales, value_scales: [pages, kv_heads, page_tokens] bfloat16, by position in every kernel; None where the
    format has none.
    """

    keys: Tensor
    values: Tensor | None
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a kernel must know to say whether it serves a layer.

    window: positions a token sees, itself included; with `chunked`, the positions of a chunk, of which it sees its own
    chunk's up to itself; None for all. latent: values are the first value_size elements of the keys. formats: how K
    and V are stored; dtype: the model's own type, in which query, key and value come.
    """

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    page_tokens: int
    window: int | None
    dtype: torch.dtype
    device: torch.device
    chunked: bool = False
    latent: bool = False
    formats: KVFormats = field(default_factory=KVFormats)

    def oldest_seen(self, position: int) -> int:
        """The first position that the token at `position` sees."""
        return oldest_seen(position, self.window, self.chunked)


@dataclass(frozen=True, slots=True)
class GroupStep:
    """One step's index arrays for one cache group, on the device. S sequences, T tokens, flat over sequences.

    query_starts: [S + 1] int32, where each sequence's tokens begin in the flat order;
    starts: [S] int32, position of each sequence's first token in this step;
    tables: [S, P] int32, page ids, filled up with 0 (the page at column c of row i holds the positions from
        (first_pages[i] + c) * page_tokens on);
    first_pages: [S] int32;
    slots: [T] int64, page id * page_tokens + offset, where each token's K and V are written.
    max_query and max_length are the largest token count, and the largest context after the step, of a sequence.
    """

    query_starts: Tensor
    starts: Tensor
    tables: Tensor
    first_pages: Tensor
    slots: Tensor
    max_query: int
    max_length: int


class AttentionKernel(Protocol):
    """Called by the runner, a layer at a time, from one thread. `write` of a layer comes before its `attend`.

    A token attends to the positions up to its own, from `shape.oldest_seen` on. The K and V of this step's tokens are
    read as stored, so chunks, hits and recomputation see the same values. Sequences may share pages that lie before
    all that this step writes; a kernel may read such pages once for all of them.

    Attributes:
        name: for people.
        order: names the inner order of its pages: equal names read each other's pages. Part of a cached page's key.
    """

    name: str
    order: str

    def supports(self, shape: AttentionShape) -> bool:
        """Whether this kernel serves such a layer on this machine. Does not raise."""
        ...

    def prepare(self, step: GroupStep, shape: AttentionShape) -> Any:
        """What `write` and `attend` of all the group's layers need of a step, worked out once; handed to both."""
        ...

    def write(self, key: Tensor, value: Tensor | None, pages: LayerPages, prepared: Any) -> None:
        """Stores key [T, kv_heads, key_size] and value [T, kv_heads, value_size], None for latents, at the slots.

        The pages of a sequence are written from their first position on, without gaps.
        """
        ...

    def attend(
        self,
        query: Tensor,
        pages: LayerPages,
        prepared: Any,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of query [T, heads, key_size] over the pages: [T, heads, value_size].

        softcap: logits become softcap * tanh(logits / softcap). sinks: [heads], one extra logit per head that takes
        probability and gives no value.
        """
        ...


def rows_contiguous(x: Tensor) -> Tensor:
    """x [T, heads, D] with each token's heads side by side; the stride between tokens may be anything."""
    if x.stride(2) == 1 and x.stride(1) == x.shape[2]:
        return x
    return x.contiguous()
