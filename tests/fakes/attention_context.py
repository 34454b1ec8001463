"""A plain AttentionContext over growing lists of keys and values: slow, float32, and right by inspection."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from backend.planner.model_facts import ModelFacts
from kvcache.layout import Keeps


@dataclass
class SequenceCache:
    """All keys [positions, kv_heads, D] and values of one sequence, by slot."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class PlainAttentionContext:
    """One pass over flat slices of several sequences: `parts` are (cache, first position, tokens), in flat order."""

    def __init__(self, facts: ModelFacts, parts: list[tuple[SequenceCache, int, int]]) -> None:
        self._facts = facts
        self._parts = parts
        self.slots_called: list[int] = []
        self.zeroed_slot: int | None = None  # a layer whose attention answers zeros

    def attend(
        self,
        slot: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        self.slots_called.append(slot)
        layer = self._facts.layers[slot]
        if value is None:
            assert layer.keeps is Keeps.LATENT, "only latents are their own values"
            value = key[..., : layer.value_size]
        assert (key.shape[1:], value.shape[1:]) == (
            (layer.kv_heads, layer.key_size),
            (layer.kv_heads, layer.value_size),
        )
        outputs, done = [], 0
        for cache, start, count in self._parts:
            rows = slice(done, done + count)
            done += count
            self._append(cache, slot, start, key[rows], value[rows])
            outputs.append(self._attend_one(cache, slot, start, query[rows], scaling, softcap, sinks))
        out = torch.cat(outputs).to(query.dtype)
        return torch.zeros_like(out) if slot == self.zeroed_slot else out

    def _append(self, cache: SequenceCache, slot: int, start: int, key: Tensor, value: Tensor) -> None:
        if start > 0:
            key = torch.cat([cache.keys[slot][:start], key])
            value = torch.cat([cache.values[slot][:start], value])
        cache.keys[slot], cache.values[slot] = key.clone(), value.clone()

    def _attend_one(
        self,
        cache: SequenceCache,
        slot: int,
        start: int,
        query: Tensor,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        count, heads, _ = query.shape
        group = heads // cache.keys[slot].shape[1]
        keys = cache.keys[slot].float().repeat_interleave(group, 1)  # [positions, heads, D]
        values = cache.values[slot].float().repeat_interleave(group, 1)
        scores = torch.einsum("thd,phd->htp", query.float(), keys) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        at = torch.arange(start, start + count)[:, None]
        positions = torch.arange(start + count)[None]
        visible = positions <= at
        layer = self._facts.layers[slot]
        if layer.window is not None and layer.keeps is Keeps.CHUNKED:
            visible &= positions // layer.window == at // layer.window
        elif layer.window is not None:
            visible &= positions > at - layer.window
        scores = scores.masked_fill(~visible, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.float()[:, None, None].expand(heads, count, 1)], -1)
        weights = scores.softmax(-1)[..., : start + count]
        return torch.einsum("htp,phd->thd", weights, values)
