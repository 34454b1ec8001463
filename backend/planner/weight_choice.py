"""Which WeightFormat the weights get, and why; what each takes is `memory`'s to say. Pure, no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from backend.errors import OutOfMemoryError, SettingError
from backend.planner.target import Target
from quant.weight_sizes import WEIGHT_SIZES

# What "auto" takes, the first that fits: the files' own numbers, then the format that costs less accuracy.
AUTO = ("model", "int8", "nf4")
# Compute capabilities of the first GPUs that multiply a format's numbers.
_LEAST = {"int8": (7, 5), "nf4": (6, 0), "fp8": (8, 9)}
_NEEDS = {
    "int8": "whole numbers (Turing or later)",
    "nf4": "nf4 (Pascal or later)",
    "fp8": "fp8 (Ada, Hopper or later)",
}

Planned = TypeVar("Planned")


def check_weights(asked: str, target: Target) -> None:
    """Refuses a format that is unknown, or that the device does not multiply. Raises SettingError."""
    if asked != "auto" and asked not in WEIGHT_SIZES:
        raise SettingError(
            f"--weights {asked} is not known.", "", f"Use --weights auto, {', '.join(sorted(WEIGHT_SIZES))}."
        )
    if asked == "fp8" and not target.cuda:
        raise SettingError(
            "--weights fp8 needs a GPU that multiplies fp8.",
            f"{target.label} computes here, and no processor does.",
            "Use --weights int8, which takes as many bytes.",
        )
    if target.capability is not None and not _serves(asked, target):
        major, minor = target.capability
        raise SettingError(
            f"--weights {asked} needs a GPU that multiplies {_NEEDS[asked]}.",
            f"{target.label} has compute capability {major}.{minor}; it takes {'.'.join(map(str, _LEAST[asked]))}.",
            f"Use --weights {'nf4' if asked == 'int8' else 'model' if asked == 'nf4' else 'int8'}.",
        )


def first_that_fits(
    asked: str, target: Target, plan: Callable[[str, str], Planned], held: str | None = None
) -> Planned:
    """What `plan` makes of the format asked for, or, for "auto", of the first that fits.

    plan: called with a format and the sentence that says why it is taken. held: what "auto" took before.

    Raises what `plan` raises of the format asked for, and for "auto", of the smallest; and SettingError for a format
    that is unknown or not served here.
    """
    check_weights(asked, target)
    if asked != "auto":
        return plan(asked, _asked(asked))
    served = _auto(target, held)
    for name in served[:-1]:
        try:
            return plan(name, _why(name))
        except OutOfMemoryError:
            continue
    return plan(served[-1], _why(served[-1]))


def smallest(asked: str, target: Target, held: str | None = None) -> tuple[str, str]:
    """The format asked for, or, for "auto", the one of the fewest bytes; and why, as `first_that_fits` has it."""
    name = asked if asked != "auto" else _auto(target, held)[-1]
    return name, _why(name) if asked == "auto" else _asked(name)


def _auto(target: Target, held: str | None) -> list[str]:
    return [name for name in AUTO if _serves(name, target) and held in (None, name)]


def _asked(name: str) -> str:
    return "" if name == "model" else f"The weights are {name}, as --weights asks."


def _serves(name: str, target: Target) -> bool:
    return serves(name, target.capability)


def serves(name: str, capability: tuple[int, int] | None) -> bool:
    """Whether a device multiplies a format's numbers; the capability of a processor is None."""
    if capability is None:
        return name != "fp8"
    return capability >= _LEAST.get(name, (0, 0))


def _why(name: str) -> str:
    if name == AUTO[0]:
        return "The weights stay as the files have them: they fit."
    larger = " or ".join(AUTO[: AUTO.index(name)])
    return f"The weights are {name}: as {larger} they leave no room for a context."
