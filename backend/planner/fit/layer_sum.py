"""LayerSum: one layer's parameters by what divides them, as they are added up. What layers have is `mixers`' to say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kvcache.layout import LayerCache
from quant.weight_sizes import LinearShape


@dataclass(slots=True)
class LayerSum:
    """One layer.

    Attributes:
        queries, keys: parameters divided with query heads, with KV heads. state: with the heads of a state.
        columns: of MLPs, by width. experts: by count and width. rest: what every rank has whole,
            of which choosers, what chooses the keys to attend to.
        linears: shapes, and how many.
        caches: what it keeps of positions, with the query heads that read it; more than one where it keeps two kinds.
        state_elements: what it keeps of a sequence.
    """

    queries: int = 0
    keys: int = 0
    state: int = 0
    rest: int = 0
    choosers: int = 0
    columns: Counter[int] = field(default_factory=Counter)
    experts: Counter[tuple[int, int]] = field(default_factory=Counter)
    linears: Counter[LinearShape] = field(default_factory=Counter)
    caches: list[tuple[LayerCache, int]] = field(default_factory=list)
    state_elements: int = 0

    @property
    def parameters(self) -> int:
        divided = self.queries + self.keys + self.state
        return divided + self.columns.total() + self.experts.total() + self.rest

    def linear(self, columns: int, depth: int, bias: bool = False, kept: bool = False) -> int:
        """Notes a linear; how many parameters it has."""
        self.linears[LinearShape(columns, depth, bias, kept)] += 1
        return columns * (depth + bias)
