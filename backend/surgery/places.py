"""Places: where each tensor of a checkpoint belongs in the model after surgery, and which of them have been filled."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import BrokenModelError
from backend.surgery.arrivals import Arrivals
from backend.surgery.cut import take
from backend.surgery.cuts import Cut
from backend.surgery.linears import ServedLinear


class Places:
    """The model's parameters and stored buffers by the names that transformers gave them before surgery.

    Merged parameters appear under each of their old names, as views. Each place is filled exactly once.
    """

    def __init__(
        self,
        model: nn.Module,
        file: str,
        arrivals: Arrivals | None = None,
        cuts: Mapping[str, Cut] | None = None,
        zeros: frozenset[str] = frozenset(),
    ) -> None:
        """`model`: materialized, but for what waits in `arrivals`. `file`: what to call the checkpoint in errors.

        cuts, zeros: of a divided model, by name: the part of a tensor that belongs to the place; places that get zeros.
        """
        self._file, self._arrivals, self._cuts, self._zeros = file, arrivals, cuts or {}, zeros
        self._places = dict(_named_places(model))
        self._filled: set[Hashable] = set()
        if arrivals is not None:
            for place in self._places.values():
                arrivals.expect(place.module)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._places)

    def cut_of(self, name: str) -> Cut | None:
        """Which part of the checkpoint's tensor belongs to this place; None for all of it."""
        return self._cuts.get(name)

    def fill(self, name: str, value: Tensor, *, cut: bool = False) -> None:
        """Copies `value` to the place, converting its dtype. A copy for a tied name that is filled already is skipped.

        cut: the value is the place's part of the tensor already.

        Raises:
            BrokenModelError: no such place, or another shape.
        """
        if name not in self._places:
            raise BrokenModelError(
                f"{self._file} does not fit its own config.", f"The model has no tensor {name}.", _DOWNLOAD_AGAIN
            )
        place = self._places[name]
        part = None if cut else self._cuts.get(name)
        if part is not None:
            value = self._part(name, value, part)
        if place.shape != value.shape:
            raise BrokenModelError(
                f"{self._file} does not fit its own config.",
                f"{name} is {list(value.shape)} in the file, and {list(place.shape)} by the config.",
                _DOWNLOAD_AGAIN,
            )
        if place.key not in self._filled:
            self._put(place, torch.zeros_like(value) if name in self._zeros else value)
            self._filled.add(place.key)

    def _part(self, name: str, value: Tensor, cut: Cut) -> Tensor:
        if cut.dim >= value.dim() or value.shape[cut.dim] <= int(cut.index.max()):
            raise BrokenModelError(
                f"{self._file} does not fit its own config.",
                f"{name} is {list(value.shape)} in the file, which is smaller than the config says.",
                _DOWNLOAD_AGAIN,
            )
        return take(value, cut)

    def _put(self, place: _Place, value: Tensor) -> None:
        if self._arrivals is None:
            place.tensor().copy_(value)
            return
        self._arrivals.open(place.module)
        place.tensor().copy_(value)
        self._arrivals.filled(place.module)

    def check_complete(self) -> None:
        """Raises BrokenModelError where a place has not been filled, naming up to five."""
        missing = sorted(name for name, place in self._places.items() if place.key not in self._filled)
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise BrokenModelError(
                f"{self._file} is incomplete.", f"Missing: {', '.join(missing[:5])}{more}.", _DOWNLOAD_AGAIN
            )


_DOWNLOAD_AGAIN = "Remove the model and pull it again, or check that config.json belongs to these weights."


@dataclass(frozen=True, slots=True)
class _Place:
    """A module's parameter or buffer, or some rows of it, as it was when the places were named: perhaps on meta."""

    module: nn.Module
    attribute: str
    whole: Tensor
    rows: tuple[int, int] | None = None

    @property
    def key(self) -> Hashable:
        """Equal for the same rows of one tied tensor."""
        return id(self.whole), self.rows or (0, *self.whole.shape[:1])

    @property
    def shape(self) -> tuple[int, ...]:
        whole = tuple(self.whole.shape)
        return whole if self.rows is None else (self.rows[1] - self.rows[0], *whole[1:])

    def tensor(self) -> Tensor:
        """Where to put values now."""
        whole: Any = getattr(self.module, self.attribute)
        return whole if self.rows is None else whole[self.rows[0] : self.rows[1]]


def _named_places(model: nn.Module) -> Iterator[tuple[str, _Place]]:
    for path, module in model.named_modules():
        if isinstance(module, ServedLinear):
            for part in module.parts:
                rows = part.start, part.stop
                yield f"{part.name}.weight", _Place(module, "weight", module.weight, rows)
                if module.bias is not None:
                    yield f"{part.name}.bias", _Place(module, "bias", module.bias, rows)
            continue
        stored = {name: buffer for name, buffer in module._buffers.items() if name not in _unstored(module)}
        for name, tensor in (module._parameters | stored).items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, _Place(module, name, tensor)


def _unstored(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set
