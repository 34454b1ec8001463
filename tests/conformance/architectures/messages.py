"""What the matrix tells its ranks, and what they answer. Ways between them are `team`'s."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from backend.library.files import ModelFiles


class Job(msgspec.Struct, frozen=True):
    """One model to load and to answer prompts with.

    Attributes:
        folder: the checkpoint's.
        weights: its files.
        attention, mlp: as in Division, a part for each rank; one part is a model that is not divided.
        experts: "tensor" or "expert", as there.
        generation: of the ranks' group, new for each job.
        stages: into how many each rank cuts its part, one after the other.
    """

    name: str
    folder: str
    weights: tuple[str, ...]
    size: int
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    experts: Literal["tensor", "expert"]
    prompts: tuple[tuple[int, ...], ...]
    count: int
    generation: str
    stages: int = 1

    @property
    def files(self) -> ModelFiles:
        return ModelFiles(
            name=self.name, format="safetensors", weights=self.weights, folder=self.folder, bytes=self.size
        )


class Reply(msgspec.Struct, frozen=True):
    """A rank's answer: with `tokens` and `logits` where it worked, else with why it did not.

    Attributes:
        logits: of every token of each prompt, float32, as bytes.
        held: bytes of weights that the rank holds.
    """

    outcome: Literal["answered", "refused", "failed"]
    why: str = ""
    tokens: list[list[int]] = []
    logits: list[bytes] = []
    held: int = 0

    def logits_of(self, index: int, length: int) -> Tensor:
        """[length, vocabulary] of one prompt."""
        return torch.from_numpy(np.frombuffer(self.logits[index], dtype=np.float32).copy()).view(length, -1)
