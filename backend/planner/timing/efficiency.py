"""Efficiency: of what devices are built for, what engines reach, with the range that published figures leave open."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from backend.planner.timing.device_speed import DeviceSpeed, Family, NumberKind

# Which end of every range a prediction takes.
Outlook = Literal["worst", "likely", "best"]

# Of memory bandwidth, what reading weights and pages reaches; what starting kernels takes is the engine's.
# H100: 0.62 to 0.84 over a whole step in bfloat16, 0.45 to 0.75 in fp8; A100: 0.68 to 0.70 (published 8B and 70B
# decoding, start-up of kernels included). Cards with graphics memory: 0.8 to 0.9 by llama.cpp's tables.
_READING: MappingProxyType[Family, tuple[float, float, float]] = MappingProxyType(
    {
        "hopper": (0.62, 0.78, 0.86),
        "ampere": (0.64, 0.74, 0.80),
        "blackwell": (0.55, 0.72, 0.84),
        "graphics": (0.62, 0.80, 0.90),
        "volta": (0.55, 0.70, 0.82),
        "other": (0.45, 0.65, 0.82),
        "processor": (0.6, 0.85, 1.0),
    }
)
# Of dense products, what prompts and large batches reach. H100: 0.68 to 0.86 in bfloat16, 0.54 to 0.73 in fp8;
# A100: 0.72 to 0.94; L40S 0.72.
_MULTIPLYING: MappingProxyType[NumberKind, tuple[float, float, float]] = MappingProxyType(
    {"bf16": (0.55, 0.70, 0.86), "fp8": (0.45, 0.58, 0.73), "int8": (0.40, 0.55, 0.73), "fp4": (0.30, 0.42, 0.60)}
)
# Of that, what products of experts reach: each sees a few rows, and rows are gathered and scattered.
_EXPERTS = (0.35, 0.5, 0.8)
# What a link takes, of what was measured on such a link.
_LINK = (1.5, 1.0, 0.85)
_OWN = {"worst": 0, "likely": 1, "best": 2}


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What is reached, of a device, at one end of the range or in its middle.

    Attributes:
        outlook: which.
        reading: part of its memory's bandwidth.
        multiplying: part of its dense products.
        experts: of these, the part that products of experts reach.
    """

    outlook: Outlook
    reading: float
    multiplying: float
    experts: float


def efficiency(device: DeviceSpeed, kind: NumberKind, outlook: Outlook = "likely") -> Efficiency:
    """What the device reaches where weights are of that kind."""
    at = _OWN[outlook]
    multiplied = _MULTIPLYING[device.multiplies(kind)][at]
    return Efficiency(outlook, _READING[device.family][at], multiplied, _EXPERTS[at])


def link_factor(outlook: Outlook) -> float:
    """What a message takes, of what was measured."""
    return _LINK[_OWN[outlook]]
