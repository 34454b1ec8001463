"""TensorSource: a checkpoint's tensors by name, packed ones as the weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from backend.errors import BrokenModelError
from backend.surgery.packings.packing import Packing


class TensorSource:
    """Gives each weight when it is asked for; nothing is kept."""

    def __init__(self, names: Iterable[str], packing: Packing | None, file: str) -> None:
        """names: the tensors of the files; `file`: what to call the checkpoint in errors."""
        self._file, self._packing = file, packing
        self._parts: dict[str, dict[str, str]] = {}
        every = list(names)
        if packing is None:
            self.names = every
            return
        present, taken = set(every), set()
        for name in every:
            if name.endswith(packing.parts[0]):
                start = name.removesuffix(packing.parts[0])
                parts = {part: f"{start}{part}" for part in packing.parts if f"{start}{part}" in present}
                self._parts[start + packing.weight] = parts
                taken.update(parts.values())
        plain = [name for name in every if name not in taken and not name.endswith(packing.unused or ("\0",))]
        self.names = [*plain, *self._parts]

    def packs(self, name: str) -> bool:
        """Whether the tensor is made of several of the files'."""
        return name in self._parts

    def stored(self, name: str) -> tuple[str, ...]:
        """The files' tensors that it is made of."""
        return tuple(self._parts[name].values()) if name in self._parts else (name,)

    def tensor(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The tensor of that name; `read` gives those of the files.

        Raises BrokenModelError where its parts are missing or do not fit each other.
        """
        parts = self._parts.get(name)
        if parts is None or self._packing is None:
            return read(name)
        try:
            return self._packing.unpack({part: read(own) for part, own in parts.items()})
        except (ValueError, KeyError) as error:
            why = f"{name} misses {error.args[0]}" if isinstance(error, KeyError) else f"{name} {error}"
            raise BrokenModelError(
                f"{self._file} does not fit its own config.", f"{why}.", "Remove the model and pull it again."
            ) from error
