"""Places: where each tensor of a checkpoint belongs in the model after surgery, and which of them have been filled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from backend.errors import BrokenModelError
from backend.surgery.cut import take
from backend.surgery.cuts import Cut
from backend.surgery.linears import ServedLinear


class Places:
    """The model's parameters and stored buffers by the names that transformers gave them before surgery.

    Merged parameters appear under each of their old names, as views. Each place is filled exactly once.
    """

    def __init__(
        self, model: nn.Module, file: str, cuts: Mapping[str, Cut] | None = None, zeros: frozenset[str] = frozenset()
    ) -> None:
        """`model`: materialized. `file`: what to call the checkpoint in errors.

        cuts, zeros: of a divided model, by name: the part of a tensor that belongs to the place; places that get zeros.
        """
        self._file, self._cuts, self._zeros = file, cuts or {}, zeros
        self._tensors = dict(_named_places(model))
        self._filled: set[tuple[int, tuple[int, ...]]] = set()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def cut_of(self, name: str) -> Cut | None:
        """Which part of the checkpoint's tensor belongs to this place; None for all of it."""
        return self._cuts.get(name)

    def fill(self, name: str, value: Tensor, *, cut: bool = False) -> None:
        """Copies `value` to the place, converting its dtype. A copy for a tied name that is filled already is skipped.

        cut: the value is the place's part of the tensor already.

        Raises:
            BrokenModelError: no such place, or another shape.
        """
        if name not in self._tensors:
            raise BrokenModelError(
                f"{self._file} does not fit its own config.", f"The model has no tensor {name}.", _DOWNLOAD_AGAIN
            )
        place = self._tensors[name]
        part = None if cut else self._cuts.get(name)
        if part is not None:
            value = self._part(name, value, part)
        if place.shape != value.shape:
            raise BrokenModelError(
                f"{self._file} does not fit its own config.",
                f"{name} is {list(value.shape)} in the file, and {list(place.shape)} by the config.",
                _DOWNLOAD_AGAIN,
            )
        if _where(place) not in self._filled:
            if name in self._zeros:
                place.zero_()
            else:
                place.copy_(value)
            self._filled.add(_where(place))

    def _part(self, name: str, value: Tensor, cut: Cut) -> Tensor:
        if cut.dim >= value.dim() or value.shape[cut.dim] <= int(cut.index.max()):
            raise BrokenModelError(
                f"{self._file} does not fit its own config.",
                f"{name} is {list(value.shape)} in the file, which is smaller than the config says.",
                _DOWNLOAD_AGAIN,
            )
        return take(value, cut)

    def check_complete(self) -> None:
        """Raises BrokenModelError where a place has not been filled, naming up to five."""
        missing = sorted(name for name, place in self._tensors.items() if _where(place) not in self._filled)
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise BrokenModelError(
                f"{self._file} is incomplete.", f"Missing: {', '.join(missing[:5])}{more}.", _DOWNLOAD_AGAIN
            )


_DOWNLOAD_AGAIN = "Remove the model and pull it again, or check that config.json belongs to these weights."


def _where(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _named_places(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        if isinstance(module, ServedLinear):
            weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType] - not adopted by a kernel yet
            for part in module.parts:
                yield f"{part.name}.weight", weight[part.start : part.stop]
                if module.bias is not None:
                    yield f"{part.name}.bias", module.bias[part.start : part.stop]
            continue
        stored = {name: buffer for name, buffer in module._buffers.items() if name not in _unstored(module)}
        for name, tensor in (module._parameters | stored).items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _unstored(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set
