"""What a GPU's health means: which GPUs are left out, and which only warned of. Pure."""

from __future__ import annotations

from backend.hardware.gpu import Gpu, GpuFault, GpuReading


def fault_of(gpu: Gpu) -> GpuFault | None:
    """Why this GPU must not compute; None where it may."""
    health, name = gpu.health, f"GPU {gpu.index} ({gpu.name})"
    if health.uncorrectable:
        count = health.uncorrectable
        errors = "an error" if count == 1 else f"{count} errors"
        what = f"{name} has had {errors} in its memory that could not be corrected; it needs a reset."
    elif health.remap_failed:
        what = f"{name} has a broken row of memory and no spare one for it; it needs repair."
    elif health.retirement_pending:
        what = f"{name} has a broken page of memory that only a reset takes out of use."
    else:
        return None
    return GpuFault(gpu.index, gpu.uuid, what)


def left_out(reading: GpuReading) -> tuple[GpuFault, ...]:
    """All GPUs of a reading that must not compute, in their order."""
    found = [fault for gpu in reading.gpus if (fault := fault_of(gpu)) is not None]
    return tuple(sorted((*reading.faults, *found), key=lambda fault: fault.index))


def warnings_of(gpu: Gpu) -> dict[str, str]:
    """What slows a GPU down or may become a fault, as sentences by kind: throttled, correctable, remap."""
    health, name = gpu.health, f"GPU {gpu.index} ({gpu.name})"
    warnings: dict[str, str] = {}
    if health.throttled:
        warm = f" at {health.temperature} °C" if health.temperature is not None else ""
        warnings["throttled"] = f"{name} runs slower than it could{warm}: {', '.join(health.throttled)}."
    if count := health.correctable:
        errors = "an error" if count == 1 else f"{count} errors"
        warnings["correctable"] = f"{name} has corrected {errors} in its memory since the driver was loaded."
    if health.remap_pending:
        warnings["remap"] = f"{name} has a broken row of memory that the next reset replaces by a spare one."
    return warnings
