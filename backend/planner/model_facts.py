"""ModelFacts: what deciding a Plan needs to know of a model, from its config and file headers alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kvcache.layout import LayerCache
from quant.weight_sizes import LinearShape


@dataclass(frozen=True, slots=True)
class Columns:
    """MLPs of one width, all layers together: `parameters` that are divided by the MLP's columns."""

    width: int
    parameters: int


@dataclass(frozen=True, slots=True)
class ExpertColumns:
    """Experts of one count and width, all layers together: divided by their columns, or as whole experts."""

    count: int
    width: int
    parameters: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Dimensions of a model, or of one rank's share of it.

    Attributes:
        architecture: transformers' class name, such as LlamaForCausalLM.
        layers: what each attention layer keeps, in the order of their slots.
        heads: query heads of each attention layer, in the order of their slots.
        hidden, intermediate, vocabulary: sizes; `intermediate` is the widest MLP (experts' width times active experts).
        max_positions: positions the model was made for, or those up to which it is served.
        positions_reason: why these are fewer, as a sentence; else empty.
        parameters: parameter count as stored (tied embeddings once).
        native_dtype: the dtype its config names.
        query_parameters, key_parameters: of each attention layer, those that are divided with its query heads (the
            output projection included), and with its KV heads.
        columns, experts: the parameters of MLPs and of experts.
        vocabulary_parameters: of the embedding and the output layer, divided by the vocabulary.
        output_parameters: of these, the output layer's, which every step reads; all of them where it is the embedding.
        active_experts: experts that a token passes in a layer; 0 without experts.
        linears: shapes of the weights that a WeightFormat may store, and how many there are of each; of `parameters`,
            the rest stays in the model's dtype.
        layer_parameters: of each layer whose weights could lie in host memory; of a rank's share, still the whole's.
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
    query_parameters: tuple[int, ...] = ()
    key_parameters: tuple[int, ...] = ()
    columns: tuple[Columns, ...] = ()
    experts: tuple[ExpertColumns, ...] = ()
    vocabulary_parameters: int = 0
    output_parameters: int = 0
    active_experts: int = 0
    linears: tuple[tuple[LinearShape, int], ...] = ()
    layer_parameters: tuple[int, ...] = ()
    positions_reason: str = ""

    @property
    def attention_parameters(self) -> int:
        return sum(self.query_parameters) + sum(self.key_parameters)

    @property
    def expert_parameters(self) -> int:
        return sum(part.parameters for part in self.experts)

    @property
    def replicated_parameters(self) -> int:
        """What every rank holds whole: norms, routers, the projections to latents, and what nothing is known of."""
        divided = sum(part.parameters for part in self.columns) + self.vocabulary_parameters
        return self.parameters - self.attention_parameters - self.expert_parameters - divided


def positions_reason(chosen: int | None, most: int) -> str:
    """Why a model made for `most` positions, whose tokens choose so many to attend to, is served up to fewer."""
    if chosen is None or chosen >= most:
        return ""
    return (
        f"Each token of the model chooses {chosen:,} positions to attend to: contexts up to that length are served, of "
        "which it attends to all."
    )
