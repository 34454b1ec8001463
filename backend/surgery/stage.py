"""ModelStage: how hidden states go into and out of a loaded model that is one stage of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.errors import UnsupportedModelError
from backend.layer_span import LayerSpan
from backend.parallel.quiet_group import QuietGroup
from backend.surgery.stage_gates import Gates, StageEnd


@dataclass(frozen=True)
class ModelStage:
    """A stage's place in the whole model.

    Attributes:
        layers: path of the list of layers in which the span's are the stage's own.
        shape: of one token's hidden states, as the model has them between layers.
    """

    span: LayerSpan
    layers: str
    shape: tuple[int, ...]
    gates: Gates

    @property
    def columns(self) -> int:
        """Elements of one token's hidden states."""
        return math.prod(self.shape)

    def receive(
        self, hidden: Tensor | None, tokens: int, dtype: torch.dtype, device: torch.device, ranks: QuietGroup | None
    ) -> None:
        """Lays the hidden states [T, columns] of the stage before ready for the pass.

        They are the first rank's to give; the others may have None, and get them from it.

        Raises ValueError where they are missing, or of another shape or dtype.
        """
        if hidden is None and (ranks is None or ranks.rank == 0):
            raise ValueError("a stage that does not begin a model needs hidden states")
        if hidden is None:
            hidden = torch.zeros(tokens, self.columns, dtype=dtype, device=device)
        if hidden.shape != (tokens, self.columns) or hidden.dtype != dtype:
            raise ValueError(f"hidden states are {hidden.dtype} {list(hidden.shape)}")
        hidden = hidden.to(device)
        if ranks is not None:
            # Nothing is added to them, so they come to all ranks as they are.
            hidden = hidden.clone(memory_format=torch.contiguous_format) if ranks.rank == 0 else hidden
            ranks.all_reduce(hidden)
        self.gates.received = hidden.reshape(1, tokens, *self.shape)

    def hand_on(self, end: StageEnd, dtype: torch.dtype) -> Tensor:
        """The hidden states [T, columns] with which a pass ended; valid until the next pass.

        Raises UnsupportedModelError where they are of another dtype than the model: links carry the model's.
        """
        if end.hidden.dtype != dtype:
            raise UnsupportedModelError(
                f"This model is not cut into stages in {dtype} yet.",
                f"Its layers hand on hidden states in {end.hidden.dtype}.",
                "Use --pp 1, or --dtype float32.",
            )
        return end.hidden.reshape(-1, self.columns)
