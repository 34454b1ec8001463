"""Turns: gives attention modules that run several times in a pass the cache slot of each run, by the order of runs."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from backend.surgery.trace import Traced


def take_turns(model: nn.Module, traced: Traced) -> None:
    """Makes `slot` of every such module the slot of its next run; modules that run once keep the one they have.

    A pass begins with the model's own forward, also where an earlier pass ended in an error.
    """
    slots: dict[str, list[int]] = {}
    for slot, layer in enumerate(traced.layers):
        slots.setdefault(layer.name, []).append(slot)
    repeated = {path: own for path, own in slots.items() if len(own) > 1}
    if not repeated:
        return
    runs: dict[str, int] = {}
    model.register_forward_pre_hook(lambda module, arguments: runs.clear())
    for path, own in repeated.items():
        model.get_submodule(path).register_forward_pre_hook(partial(_next, runs, path, own))


def _next(runs: dict[str, int], path: str, slots: list[int], module: nn.Module, arguments: tuple[Any, ...]) -> None:
    run = runs.get(path, 0)
    runs[path] = run + 1
    module.slot = slots[run]  # pyright: ignore[reportArgumentType]
