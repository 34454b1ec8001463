"""Which of a model's layers could lie in host memory between their turns: where they are, and what they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn


def decoder_layers(model: nn.Module, attention: Iterable[str]) -> tuple[str, ...]:
    """Paths of the layers, in the order of the model's own lists of them, none of whose parameters has two users.

    attention: paths of the attention modules, in the order of their runs; a layer is what the outermost list around one
    of them is made of. Layers that run several times in a pass have no turn of their own.
    """
    runs = Counter(attention)
    around = {name: list_around(model, name) for name in runs}
    again = {around[name] for name, count in runs.items() if count > 1}
    lists = dict.fromkeys(path for path in around.values() if path is not None and path not in again)
    paths = [f"{path}.{name}" for path in lists for name, _ in model.get_submodule(path).named_children()]
    users = Counter(id(one) for module in model.modules() for one in module._parameters.values() if one is not None)
    return tuple(path for path in paths if _alone(model.get_submodule(path), users))


def layer_parameters(model: nn.Module, layers: Sequence[str]) -> tuple[int, ...]:
    """How many parameters each of these layers has."""
    return tuple(sum(one.numel() for one in model.get_submodule(path).parameters()) for path in layers)


def list_around(model: nn.Module, name: str) -> str | None:
    """The path of the outermost list of modules that the named one lies in."""
    parts = name.split(".")
    paths = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((path for path in paths if isinstance(model.get_submodule(path), nn.ModuleList)), None)


def _alone(layer: nn.Module, users: Counter[int]) -> bool:
    return all(users[id(one)] == 1 for one in layer.parameters())
