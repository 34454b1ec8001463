"""Places: where each tensor of a checkpoint belongs in the model after surgery, and which of them have been filled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backend.errors import BrokenModelError


class Places:
    """The model's parameters and stored buffers by the names that transformers gave them before surgery.

    Merged parameters appear under each of their old names, as views. Each place is filled exactly once.
    """

    def __init__(self, model: nn.Module, file: str) -> None:
        """`model`: materialized. `file`: what to call the checkpoint in errors."""
        self._file = file
        self._tensors = dict(_named_places(model))
        self._filled: set[tuple[int, int, tuple[int, ...]]] = set()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def fill(self, name: str, value: Tensor) -> None:
        """Copies `value` to the place, converting its dtype. A copy for a tied name that is filled already is skipped.

        Raises:
            BrokenModelError: no such place, or another shape.
        """
        if name not in self._tensors:
            raise BrokenModelError(
                f"{self._file} does not fit its own config.", f"The model has no tensor {name}.", _DOWNLOAD_AGAIN
            )
        place = self._tensors[name]
        if place.shape != value.shape:
            raise BrokenModelError(
                f"{self._file} does not fit its own config.",
                f"{name} is {list(value.shape)} in the file, and {list(place.shape)} by the config.",
                _DOWNLOAD_AGAIN,
            )
        place.copy_(value)
        self._filled.add(_where(place))

    def check_complete(self) -> None:
        """Raises BrokenModelError where a place has not been filled, naming up to five."""
        missing = sorted(name for name, place in self._tensors.items() if _where(place) not in self._filled)
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise BrokenModelError(
                f"{self._file} is incomplete.", f"Missing: {', '.join(missing[:5])}{more}.", _DOWNLOAD_AGAIN
            )


_DOWNLOAD_AGAIN = "Remove the model and pull it again, or check that config.json belongs to these weights."


def _where(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape)


@torch.no_grad()
def _named_places(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor.detach()) for name, tensor in model.state_dict(keep_vars=True).items()]
