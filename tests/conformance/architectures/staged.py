"""StagedModel: the stages of one rank as if they were one model, for programs that call a ServedModel's forward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from backend.layer_span import LayerSpan
from backend.planner.model_facts import ModelFacts
from backend.surgery.model import ServedModel
from tests.fakes.attention_context import PlainAttentionContext


def even_spans(facts: ModelFacts, stages: int) -> list[LayerSpan]:
    """As many spans, of about as many layers each, as there are layers for; facts are the whole model's."""
    layers, slots = len(facts.layer_parameters) or len(facts.layers), len(facts.layers)
    stages = min(stages, layers)
    edges = [layers * number // stages for number in range(stages + 1)]
    return [
        LayerSpan(first, stop, layers, first * slots // layers, stop * slots // layers)
        for first, stop in pairwise(edges)
    ]


class _Shifted:
    """The slots of a stage as the whole model numbers them."""

    def __init__(self, context: PlainAttentionContext, first: int) -> None:
        self._context, self._first = context, first

    def attend(self, slot: int, *tensors: Any, **settings: Any) -> Tensor:
        return self._context.attend(slot + self._first, *tensors, **settings)


class StagedModel:
    """What `decode` and the matrix ask of a ServedModel."""

    def __init__(self, stages: Sequence[ServedModel], facts: ModelFacts) -> None:
        """facts: of all layers, with this rank's heads."""
        self._stages, self.facts = stages, facts
        self.recompute_lengths = stages[0].recompute_lengths
        self.weights_bytes = max(stage.weights_bytes for stage in stages)

    def forward(
        self, tokens: Tensor, positions: Tensor, rope_lengths: Tensor, rows: Tensor, context: PlainAttentionContext
    ) -> Tensor:
        hidden: Tensor | None = None
        for number, model in enumerate(self._stages):
            if model.stage is None:
                raise ValueError("a whole model is no stage")
            first = number == 0 or (model.ranks is not None and model.ranks.rank != 0)
            own = _Shifted(context, model.stage.span.first_slot)
            hidden = model.forward(tokens, positions, rope_lengths, rows, own, None if first else hidden)
        if hidden is None:
            raise ValueError("no stages")
        return hidden
