"""Gates: where hidden states come into a stage and leave it, inside a model that still believes it has all its layers.

    list of layers:   passed … passed │ Entry │ own … own │ Exit │ passed …
                                        puts what came      ends the pass, with what
                                        from before here    the next stage gets

Models enumerate their layers, and ask them and their config by number, so each stays in its position. Which layers are
a stage's own, and what else it has, is `stage_cut`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class StageEnd(Exception):  # noqa: N818 - no error: how a pass ends where a stage does
    """Raised by an Exit; what a model has behind its layers is not on this stage, and need not run."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("the stage ends here")
        self.hidden = hidden


class Gates:
    """Where an Entry finds the hidden states of the pass, in the model's own shape [1, T, …]."""

    def __init__(self) -> None:
        self.received: Tensor | None = None


class Husk(nn.Module):
    """What is left of a module that is not on the stage: its plain attributes and its children's, no weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(_plain(module))
        if not isinstance(module, nn.ModuleList):
            for name, child in module.named_children():
                self.add_module(name, Husk(child))


class Passed(Husk):
    """Stands in the position of a layer of another stage, and returns what it is given in the way of that layer.

    `answer` is what the layer returned in a run, None in the hidden states' place; None if it returned just these.
    """

    def __init__(self, layer: nn.Module, answer: tuple[Any, ...] | None) -> None:
        super().__init__(layer)
        self._answer = answer

    def forward(self, hidden_states: Tensor, *unused: Any, **others: Any) -> Any:
        return hidden_states if self._answer is None else (hidden_states, *self._answer[1:])


class Entry(Passed):
    """The last layer before the stage's own: returns what the stage before handed on, whatever it is given."""

    def __init__(self, layer: nn.Module, answer: tuple[Any, ...] | None, gates: Gates) -> None:
        super().__init__(layer, answer)
        self._gates = gates

    def forward(self, hidden_states: Tensor, *unused: Any, **others: Any) -> Any:
        if self._gates.received is None:
            raise RuntimeError("the stage before has handed nothing on")
        return super().forward(self._gates.received)


class Exit(Passed):
    """The first layer after the stage's own: what it is given goes to the next stage."""

    def forward(self, hidden_states: Tensor, *unused: Any, **others: Any) -> Any:
        raise StageEnd(hidden_states)


class ZeroEmbedding(nn.Module):
    """Zeros in the shape of an embedding's rows: what a model does with them is thrown away at the Entry."""

    def __init__(self, table: nn.Module, width: int) -> None:
        super().__init__()
        self.__dict__.update(_plain(table))
        weight: Any = table.weight
        # Some families ask for its type.
        self.weight = torch.empty(0, width, dtype=weight.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [..., T] int64 -> [..., T, hidden]."""
        return torch.zeros(*tokens.shape, self.weight.shape[1], dtype=self.weight.dtype, device=tokens.device)


def _plain(module: nn.Module) -> Mapping[str, Any]:
    """What a model may ask a module for that does not compute: numbers, words, configs."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ("training", "weight") and not callable(value)
        and not isinstance(value, Tensor)
    }  # fmt: skip
