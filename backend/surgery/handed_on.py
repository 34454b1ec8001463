"""Hands an argument of a model's forward on to attention modules whose layers keep it to themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def hand_on(
    model: nn.Module, modules: Iterable[str], argument: str, missed: Callable[[str], None] = lambda path: None
) -> None:
    """Makes every named module, which takes any keyword, get the keyword `argument` that the model is called with.

    missed: told the path of each module that was called without it.
    """
    current: dict[str, Any] = {}
    paths = tuple(modules)
    if not paths:
        return
    model.register_forward_pre_hook(partial(_keep, current, argument), with_kwargs=True)
    for path in paths:
        give = partial(_give, current, argument, partial(missed, path))
        model.get_submodule(path).register_forward_pre_hook(give, with_kwargs=True)


def _keep(
    current: dict[str, Any], argument: str, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    current[argument] = keywords[argument]


def _give(
    current: dict[str, Any],
    argument: str,
    missed: Callable[[], None],
    module: nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> Arguments | None:
    if argument in keywords:
        return None
    missed()
    return arguments, keywords | {argument: current[argument]}
