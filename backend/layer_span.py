"""LayerSpan: the half-open range of a model's decoder layers that one stage computes. Plain data."""

from __future__ import annotations

from msgspec import Struct


class LayerSpan(Struct, frozen=True):
    """Layers `first` to before `stop`, of `of`.

    Attributes:
        first_slot, stop_slot: the attention layers among them, as the whole model's cache layout numbers its slots.
    """

    first: int
    stop: int
    of: int
    first_slot: int
    stop_slot: int

    @property
    def begins(self) -> bool:
        """Whether the model's first layer is among them, so that the stage looks tokens up itself."""
        return self.first == 0

    @property
    def ends(self) -> bool:
        """Whether the model's last layer is among them, so that the stage has logits and samples."""
        return self.stop == self.of
