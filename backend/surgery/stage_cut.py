"""StageCut: how a model is cut down to one stage's layers, and cutting it: in place, on meta, before surgery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.layer_span import LayerSpan
from backend.surgery.stage_gates import Entry, Exit, Gates, Husk, Passed, ZeroEmbedding
from backend.surgery.trace import Traced


@dataclass(frozen=True)
class StageCut:
    """What a run of the whole model has shown of one stage of it.

    Attributes:
        layers: path of the list of layers.
        answers: of each layer, what it returns beside hidden states, as `Passed` has it.
        shape: of a token's hidden states between layers, as the model has them: (hidden,), as a rule.
        behind: paths of the modules that run behind the last layer only: norms and the output layer.
    """

    span: LayerSpan
    layers: str
    answers: tuple[tuple[Any, ...] | None, ...]
    shape: tuple[int, ...]
    behind: tuple[str, ...]

    @property
    def inside(self) -> tuple[str, ...]:
        """How the paths of all modules in the stage's own layers begin."""
        return tuple(f"{self.layers}.{number}." for number in range(self.span.first, self.span.stop))


@dataclass(frozen=True)
class StageNames:
    """Where a checkpoint's tensors belong on a stage.

    Attributes:
        own: from the names that the whole model has to those that they have here: others, where tied ones are left in
            one place only. What is not among them is another stage's.
    """

    own: Mapping[str, str]

    def place(self, name: str) -> str | None:
        """Where the tensor belongs that the whole model calls so; None for another stage's."""
        return self.own.get(name)


def cut_stage(model: PreTrainedModel, cut: StageCut, gates: Gates) -> StageNames:
    """Leaves the span's layers, with their positions, and of what is around them only what the stage needs."""
    named = _tensors(model)
    span = cut.span
    layers: Any = model.get_submodule(cut.layers)
    for number, layer in enumerate(layers):
        if number in (span.first - 1, span.stop):
            gate = Entry(layer, cut.answers[number], gates) if number < span.first else Exit(layer, None)
            layers[number] = gate
        elif not span.first <= number < span.stop:
            layers[number] = Passed(layer, cut.answers[number])
    if not span.begins:
        _forget_embedding(model)
    if not span.ends:
        for path in cut.behind:
            model.set_submodule(path, Husk(model.get_submodule(path)))
    return StageNames(_own_names(named, _tensors(model)))


def traced_stage(traced: Traced, cut: StageCut) -> Traced:
    """What tracing the stage's own layers would find."""
    inside = cut.inside
    return replace(
        traced,
        layers=tuple(layer for layer in traced.layers if layer.name.startswith(inside)),
        shared_inputs=tuple(names for names in traced.shared_inputs if all(name.startswith(inside) for name in names)),
        unhanded=tuple(name for name in traced.unhanded if name.startswith(inside)),
    )


def _forget_embedding(model: PreTrainedModel) -> None:
    table: Any = model.get_input_embeddings()
    zeros = ZeroEmbedding(table, table.weight.shape[1])
    for path, module in list(model.named_modules()):
        if module is table:
            model.set_submodule(path, zeros)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict(keep_vars=True))


def _own_names(whole: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, str]:
    places = {id(tensor): name for name, tensor in kept.items()}
    own = {name: name if name in kept else places.get(id(tensor)) for name, tensor in whole.items()}
    return {name: place for name, place in own.items() if place is not None}
