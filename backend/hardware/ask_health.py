"""Asks NVML how a GPU is. For the asking processes only; what follows from it is `health`'s."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pynvml

from backend.hardware.gpu import GpuHealth
from backend.hardware.nvml_value import value_or

# Reasons for a lower clock that are faults. The others (idle, power cap, set clocks) are how a GPU works.
_THROTTLING = MappingProxyType(
    {
        pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "it is too hot",
        pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "it is so hot that the hardware slows it down",
        pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "its power supply slows it down",
    }
)


def ask_health(handle: Any) -> GpuHealth:
    """Raises NVMLError where the GPU is lost or waits for a reset."""
    _, _, pending, failed = value_or((0, 0, 0, 0), lambda: pynvml.nvmlDeviceGetRemappedRows(handle))
    reasons = value_or(0, lambda: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))
    return GpuHealth(
        uncorrectable=_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        correctable=_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        retirement_pending=value_or(0, lambda: int(pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle))) != 0,
        remap_pending=bool(pending),
        remap_failed=bool(failed),
        throttled=tuple(text for bit, text in _THROTTLING.items() if reasons & bit),
        temperature=value_or(None, lambda: _temperature(handle)),
    )


def _errors(handle: Any, kind: int) -> int:
    return value_or(0, lambda: int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC)))


def _temperature(handle: Any) -> int | None:
    return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
