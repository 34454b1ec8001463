"""LatentAttention: multi-head latent attention over the latents themselves, which are all that its cache keeps.

A family expands a token's latent into the keys and values of all heads, and attends over these. But as a key's product
with a query is (W_k c) q = c (W_k^T q), the query may be taken to the latents instead, and what is attended there be
expanded once, after the sum: DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1.2. `latent_probe` says which modules do so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.surgery.choosers import EveryKey, Idle
from backend.surgery.context import AttentionContext
from backend.surgery.rotation import ROTATIONS

# The children of such a module, as the families name them; a query comes from one projection, or from two with a norm.
LATENT, LATENT_NORM, EXPANSION, OUTPUT = "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"
WHOLE_QUERY = ("q_proj",)
LOW_RANK_QUERY = ("q_a_proj", "q_a_layernorm", "q_b_proj")


@dataclass(frozen=True, slots=True)
class LatentForm:
    """What a layer computes: sizes of a head's parts, and how queries and keys are rotated and scaled.

    A query of a head is [nope | rope]; a token's latent is `rank` elements, and its one rotated key `rope` more.
    `hands_on`: it also answers which keys it attended to, for a later layer.
    """

    rank: int
    rope: int
    nope: int
    value: int
    rotation: str
    scaling: float
    hands_on: bool = False


class Expansion(nn.Module):
    """The weight that expands latents: per head, rows of keys [nope, rank], then rows of values [value, rank].

    One copy, under the name that checkpoints give it; both products read their rows in place.
    """

    def __init__(self, weight: nn.Parameter, heads: int, form: LatentForm) -> None:
        """weight: [heads * (nope + value), rank]."""
        super().__init__()
        self.weight = weight
        self._heads, self._form = heads, form

    def to_latents(self, query: Tensor, out: Tensor) -> None:
        """Puts what the keys' rows make of queries [T, heads, nope], and what is multiplied with latents, in place.

        out: [T, heads, rank], may be a part of a wider tensor.
        """
        torch.bmm(query.transpose(0, 1), self._rows()[:, : self._form.nope], out=out.transpose(0, 1))

    def to_values(self, latents: Tensor) -> Tensor:
        """Attended latents [T, heads, rank] as values [T, heads * value]."""
        rows = self._rows()[:, self._form.nope :]
        # The weight comes first, as it lies: transposed, a processor's product would copy all of it every time.
        latents = latents.transpose(0, 1).contiguous()
        values = torch.bmm(rows, latents.transpose(1, 2))  # [heads, value, T]
        return values.flatten(0, 1).T.contiguous()

    def _rows(self) -> Tensor:
        return self.weight.view(self._heads, -1, self._form.rank)


class LatentAttention(nn.Module):
    """Stands where a family's own module stood, with the family's children under their own names."""

    def __init__(self, module: nn.Module, slot: int, heads: int, form: LatentForm) -> None:
        super().__init__()
        self.slot, self.form, self.heads = slot, form, heads
        for name, child in module.named_children():
            if name != EXPANSION and not isinstance(child, Idle):
                self.add_module(name, child)
        weight: Any = module.get_submodule(EXPANSION).weight
        self.add_module(EXPANSION, Expansion(weight, heads, form))
        self._query_steps = LOW_RANK_QUERY if LOW_RANK_QUERY[0] in self._modules else WHOLE_QUERY

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: Any, context: AttentionContext, **unused: Any
    ) -> tuple[Any, ...]:
        """hidden_states: [1, T, hidden] -> the same shape, and no weights."""
        values = self._child(EXPANSION).to_values(self._attend(hidden_states, position_embeddings, context))
        answer = self._child(OUTPUT)(values.unsqueeze(0)), None
        return (*answer, EveryKey()) if self.form.hands_on else answer

    def _attend(self, x: Tensor, tables: Any, context: AttentionContext) -> Tensor:
        """[T, heads, rank]; nothing of queries outlives it, which are as large as what they become."""
        query, key = self._query(x, tables), self._key(x, tables)
        return context.attend(self.slot, query, key, None, scaling=self.form.scaling)

    def _query(self, x: Tensor, tables: Any) -> Tensor:
        """[T, heads, rank + rope]"""
        for name in self._query_steps:
            x = self._child(name)(x)
        form = self.form
        nope, rope = x[0].unflatten(-1, (self.heads, -1)).split((form.nope, form.rope), dim=-1)
        query = x.new_empty(x.shape[1], self.heads, form.rank + form.rope)
        self._child(EXPANSION).to_latents(nope, query[..., : form.rank])
        query[..., form.rank :] = ROTATIONS[form.rotation].rotate(rope, tables)
        return query

    def _key(self, x: Tensor, tables: Any) -> Tensor:
        """[T, 1, rank + rope]: the latent after its norm, and the rotated key that all heads share."""
        latent, rope = self._child(LATENT)(x).split((self.form.rank, self.form.rope), dim=-1)
        rotated = ROTATIONS[self.form.rotation].rotate(rope[0].unsqueeze(1), tables)
        return torch.cat((self._child(LATENT_NORM)(latent)[0].unsqueeze(1), rotated), dim=-1)

    def _child(self, name: str) -> Any:
        return self._modules[name]
