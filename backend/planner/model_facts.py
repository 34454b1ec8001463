"""ModelFacts: what deciding a Plan needs to know of a model, from its config and file headers alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kvcache.layout import LayerCache
from quant.weight_sizes import LinearShape


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Dimensions of a model.

    Attributes:
        architecture: transformers' class name, such as LlamaForCausalLM.
        layers: what each attention layer keeps, in the order of their slots.
        heads: query heads of each attention layer, in the order of their slots.
        hidden, intermediate, vocabulary: sizes; `intermediate` is the widest MLP (experts' width times active experts).
        max_positions: positions the model was made for.
        parameters: parameter count as stored (tied embeddings once).
        native_dtype: the dtype its config names.
        linears: shapes of the weights that a WeightFormat may store, and how many there are of each; of `parameters`,
            the rest stays in the model's dtype.
    """

    architecture: str
    layers: tuple[LayerCache, ...]
    heads: tuple[int, ...]
    hidden: int
    intermediate: int
    vocabulary: int
    max_positions: int
    parameters: int
    native_dtype: str
    linears: tuple[tuple[LinearShape, int], ...] = ()
