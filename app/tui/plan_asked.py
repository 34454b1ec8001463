"""PlanAsked: a screen's message that the user wants to know what fits."""

from __future__ import annotations

from textual.message import Message


class PlanAsked(Message):
    """Begin with this model; empty for the one that was looked at last."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model
