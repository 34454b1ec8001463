"""Efficiency: of what devices are built for, what engines reach, with the range that published figures leave open."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from backend.planner.timing.device_speed import DeviceSpeed, Family, NumberKind

# Which end of every range a prediction takes.
Outlook = Literal["worst", "likely", "best"]

# Of memory bandwidth, what reading weights and pages reaches: (worst, likely, best). What starting kernels takes, and
# what lies between products, is counted apart; with both, these come to what is published of whole steps: 0.62 to 0.84
# on H100 in bfloat16 and 0.45 to 0.75 in fp8, 0.68 to 0.70 on A100. Likely values are near to the least error over 193
# published speeds (tests/fit/RESULTS.md): gpt-fast's on A100, TensorRT-LLM's on H100, H200, B200 and RTX PRO 6000,
# llama.cpp's on RTX cards. "volta", "other": nobody's figures, so wide.
_READING: MappingProxyType[Family, tuple[float, float, float]] = MappingProxyType(
    {
        "hopper": (0.66, 0.84, 0.92),
        "ampere": (0.64, 0.75, 0.82),
        "blackwell": (0.48, 0.60, 0.76),
        "graphics": (0.66, 0.80, 0.90),
        "volta": (0.50, 0.70, 0.85),
        "other": (0.40, 0.65, 0.85),
        "processor": (0.70, 1.00, 1.15),
    }
)
# Of dense products, what prompts and large batches reach, norms and activations between them counted apart. Whole
# prompts: 0.68 to 0.86 on H100 in bfloat16, 0.54 to 0.73 in fp8; 0.72 to 0.94 on A100; 0.72 on L40S.
_MULTIPLYING: MappingProxyType[NumberKind, tuple[float, float, float]] = MappingProxyType(
    {
        "bf16": (0.55, 0.72, 0.88),
        "fp8": (0.45, 0.60, 0.75),
        "int8": (0.40, 0.58, 0.75),
        "fp4": (0.34, 0.48, 0.65),
    }
)
# A processor's figures are what was measured of it, not what it is built for.
_PROCESSOR_MULTIPLYING = (0.65, 0.92, 1.05)
# Its attention computes as long as it reads: 87 ms a step for 1.47 GB of pages at 30 GB/s (tests/bench/README.md).
_PROCESSOR_PAGES = 0.56
# Of that, what products of experts reach: each sees a part of the rows, which are gathered and scattered.
_EXPERTS = (0.25, 0.45, 0.80)
# Of what reading reaches, what reading experts reaches: few rows pass each, and a step begins many of them (gpt-fast's
# Mixtral 8x7B on A100).
EXPERTS_READING = 0.7
# Of what reading reaches, what reading weights reaches that products widen, by the most bits of a parameter: on GPUs
# with stacked memory, and on the others, whose memory is slower beside their processors (gpt-fast, llama.cpp).
_WIDENED: tuple[tuple[float, float, float], ...] = ((5.0, 0.75, 0.95), (9.0, 0.85, 0.95))
# What a message takes, of what was measured on such a link.
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
    processor = device.family == "processor"
    multiplied = _PROCESSOR_MULTIPLYING[at] if processor else _MULTIPLYING[device.multiplies(kind)][at]
    return Efficiency(outlook, _READING[device.family][at], multiplied, _EXPERTS[at])


def pages_reading(device: DeviceSpeed) -> float:
    """The part of `reading` that pages reach."""
    return _PROCESSOR_PAGES if device.family == "processor" else 1.0


def widened(device: DeviceSpeed, bits: float) -> float:
    """The part of `reading` that weights of so many bits reach where products widen them."""
    for most, stacked, graphics in _WIDENED:
        if bits <= most:
            return graphics if device.family in ("graphics", "processor") else stacked
    return 1.0


def link_factor(outlook: Outlook) -> float:
    """What a message takes, of what was measured."""
    return _LINK[_OWN[outlook]]
